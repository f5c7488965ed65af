"""What a job runs: a few lines of shell around one `mofore` command, words only, so that nothing in it grows stale.

    setup      the snapshot of the code, the network interface, the user's prologue
    Job        one rank: its place among the ranks, then `mofore pretrain ...`
    teardown   0 or 2: the end. Anything else: back into the queue, unless it keeps failing at the same checkpoint

The queue is asked again by the batch script, after every rank has ended, so that it is asked whoever died. submitit
asks from a handler on rank 0 instead, and bypasses SIGTERM, which is what a preempted job is sent.
"""

import json
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

from mofore.launch.cluster import ClusterConfig

AGAIN = 75  # EX_TEMPFAIL: the same command goes on
STARTS = "starts.jsonl"


@dataclass
class Job:
    """One task of a job: one `mofore` command, pickled at submission as its words."""

    words: list[str]

    def __call__(self) -> int:
        for number in (
            signal.SIGTERM,
            signal.SIGUSR2,
        ):  # until the run listens itself there is nothing to save
            signal.signal(number, _leave)
        job = submitit.JobEnvironment()
        os.environ["MASTER_PORT"] = str(_port(job.job_id))
        place = submitit.helpers.TorchDistributedEnvironment()
        # a rank chooses its device itself, among all that it sees
        place.export(set_cuda_visible_devices=False, overwrite=True)
        on_slurm = job.cluster == "slurm"
        if on_slurm and place.rank == 0:
            _note_start(job)
        from mofore.launch.cli import main

        code = main(self.words)
        if code and on_slurm:
            sys.stdout.flush()
            sys.exit(code)  # the batch script reads it
        return code

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Only called where a signal arrives before `__call__` has begun; newer releases call it by the second name."""
        return submitit.helpers.DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint


def _port(job: str) -> int:
    """Where the ranks meet: the same for all of them, another at every start, so that a port that is taken is not met
    again; below those that Linux gives out by itself.
    """
    return random.Random(f"{job} {os.environ.get('SLURM_RESTART_COUNT', '0')}").randrange(
        20000, 32768
    )


def _leave(number: int, _: FrameType | None) -> None:
    name = signal.Signals(number).name
    print(
        f"mofore: {name} before the first step: nothing to save; the same command goes on.",
        flush=True,
    )
    os._exit(AGAIN)


def _note_start(job: submitit.JobEnvironment) -> None:
    """A line in RUN/jobs/starts.jsonl for every start, also those that SLURM makes by itself."""
    folder = Path(os.environ["MOFORE_RUN_JOBS"])
    facts = {
        "id": job.job_id,
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": list(job.hostnames),
        "tasks": job.num_tasks,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with (folder / STARTS).open("a") as file:
        file.write(json.dumps(facts) + "\n")


def setup(cluster: ClusterConfig, code: Path, runs: list[Path]) -> list[str]:
    """Shell lines before the ranks start; `runs` are the run folders of an array's elements, in order."""
    lines = [
        f"runs=({shlex.join(map(str, runs))})",
        "run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}",
        "newest() { ls \"$run/checkpoints\" 2>/dev/null | sed -n 's/^step-\\([0-9]*\\)$/\\1/p' | sort -n | tail -1; }",
        "began=$(newest)",
        'export MOFORE_RUN_JOBS="$run/jobs"',
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1  # or the folder of the submission, with the code as it is now, would come first",
        "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # since SLURM 22.05 srun does not take sbatch's",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
    ]
    if cluster.network_interface:
        name = shlex.quote(cluster.network_interface)
        lines += [f"export GLOO_SOCKET_IFNAME={name} NCCL_SOCKET_IFNAME={name}"]
    return [*lines, *cluster.prologue.splitlines()]


def teardown(cluster: ClusterConfig) -> list[str]:
    """Shell lines after the ranks have ended. A job that SLURM itself requeues or cancels is RUNNING no longer."""
    return f"""\
code=$?
if ((code == 0 || code == 2)); then exit $code; fi
tries="$run/jobs/tries-$SLURM_JOB_ID"
if [[ $(newest) == "$began" ]]; then echo $(($(cat "$tries" 2>/dev/null || echo 0) + 1)) >"$tries"; else rm -f "$tries"; fi
if [[ -f $tries && $(<"$tries") -ge {cluster.max_failures} ]]; then
  echo "mofore: not requeued: {cluster.max_failures} starts in a row ended without a new checkpoint (the last with code $code, at step ${{began:-0}})."
  echo "mofore: what failed stands above; once it is mended: mofore resume $run"
  exit $code
fi
if [[ $(squeue --noheader --jobs=$SLURM_JOB_ID --format=%T 2>/dev/null) == RUNNING ]]; then
  echo "mofore: the ranks ended with code $code; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code""".splitlines()
