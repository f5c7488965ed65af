"""What a SLURM job runs: an sbatch wrapper around one `mofore` command.

    setup      run folder, snapshot of the code, network interface, the user's prologue
    Job        one rank: its rank and world size from SLURM, then `mofore pretrain ...`
    teardown   exit codes 0 and 2 end the job; any other requeues it, unless it keeps failing
               without a new checkpoint

Only argv strings are pickled, so a queued job does not depend on the code version. The batch script
requeues after every rank has ended, so it does not matter which rank died. submitit requeues from
a handler on rank 0 instead, and ignores SIGTERM, which SLURM sends to a preempted job.
"""

import os
import random
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit

from mofore.errors import EXIT_RESUMABLE
from mofore.files import append_jsonl
from mofore.launch.cluster import ClusterConfig
from mofore.launch.commands import run_command
from mofore.launch.runs import STARTS


@dataclass
class Job:
    """One task of a job: one `mofore` command, pickled at submission."""

    argv: list[str]

    def __call__(self) -> int:
        # until the run installs its own handlers there is nothing to save
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, _exit_on_signal)
        environment = submitit.JobEnvironment()
        os.environ["MASTER_PORT"] = str(_master_port(environment.job_id))
        distributed = submitit.helpers.TorchDistributedEnvironment()
        # a rank chooses its device among all that it sees
        distributed.export(set_cuda_visible_devices=False, overwrite=True)
        on_slurm = environment.cluster == "slurm"
        if on_slurm and distributed.rank == 0:
            _record_start(environment)
        code = run_command(self.argv)
        if code and on_slurm:
            sys.stdout.flush()
            sys.exit(code)  # the batch script reads it
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called only if a signal arrives before `__call__` begins."""
        return submitit.helpers.DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint  # the name in newer releases


def _master_port(job_id: str) -> int:
    """The port where the ranks meet: a function of the job and its restart.

    All ranks get the same port. A restart gets another one, in case the last was taken. It is below
    Linux's ephemeral ports.
    """
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return random.Random(f"{job_id} {restart}").randrange(20000, 32768)


def _exit_on_signal(number: int, _: FrameType | None) -> None:
    name = signal.Signals(number).name
    print(
        f"mofore: {name} before the first step: nothing to save. Rerun the same command to resume.",
        flush=True,
    )
    os._exit(EXIT_RESUMABLE)


def _record_start(environment: submitit.JobEnvironment) -> None:
    """A line in RUN/jobs/starts.jsonl for each start, SLURM's own restarts included."""
    start = {
        "id": environment.job_id,
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": list(environment.hostnames),
        "tasks": environment.num_tasks,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    append_jsonl(Path(os.environ["MOFORE_RUN_JOBS"]) / STARTS, start)


SETUP = r"""
run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
newest_step() {
  ls "$run/checkpoints" 2>/dev/null | sed -n 's/^step-\([0-9]*\)$/\1/p' | sort -n | tail -1
}
step_at_start=$(newest_step)
export MOFORE_RUN_JOBS="$run/jobs"
# keep the folder of the submission, with newer code, off sys.path
export PYTHONSAFEPATH=1
# since SLURM 22.05 srun does not inherit it from sbatch
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
"""
# A job that SLURM itself requeues or cancels is no longer RUNNING here.
TEARDOWN = r"""
code=$?
if ((code == 0 || code == 2)); then exit $code; fi
failures="$run/jobs/failures-$SLURM_JOB_ID"
if [[ $(newest_step) == "$step_at_start" ]]; then
  echo $(($(cat "$failures" 2>/dev/null || echo 0) + 1)) >"$failures"
else
  rm -f "$failures"
fi
if [[ -f $failures && $(<"$failures") -ge MAX_FAILURES ]]; then
  echo "mofore: not requeued: MAX_FAILURES starts in a row ended without a new checkpoint" \
    "(last exit code $code, step ${step_at_start:-0})."
  echo "mofore: the reason is above. Fix it, then: mofore resume $run"
  exit $code
fi
if [[ $(squeue --noheader --jobs=$SLURM_JOB_ID --format=%T 2>/dev/null) == RUNNING ]]; then
  echo "mofore: the ranks ended with exit code $code; the job is requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
"""


def setup(cluster: ClusterConfig, code: Path, runs: list[Path]) -> list[str]:
    """Shell lines before the ranks start. runs: run folders, one per element of the job array."""
    lines = [
        f"runs=({shlex.join(map(str, runs))})",
        *SETUP.strip().splitlines(),
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]
    if cluster.network_interface:
        name = shlex.quote(cluster.network_interface)
        lines += [f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name}"]
    return [*lines, *cluster.prologue.splitlines()]


def teardown(cluster: ClusterConfig) -> list[str]:
    """Shell lines after the ranks have ended; the last exit code is the job's."""
    text = TEARDOWN.replace("MAX_FAILURES", str(cluster.max_failures))
    return text.strip().splitlines()
