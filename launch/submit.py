"""Submit a pretraining run as a job: python launch/submit.py cluster=local experiment=demo data.manifest=FILE ...

cluster=debug runs it in this process, cluster=local as processes of this machine, one a task. All other
words are those of `mofore pretrain`; they are checked before anything is submitted.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import submitit

from launch.jobs import PretrainJob
from mofore.config import PretrainConfig, compose
from mofore.errors import UserError

EXECUTORS = ("debug", "local")


@dataclass
class ClusterConfig:
    """Where a job runs and with how much. `cluster=NAME` takes configs/cluster/NAME.yaml."""

    executor: str = "local"
    tasks_per_node: int = 1  # ranks
    cpus_per_task: int = 2
    timeout_min: int = 1440
    name: str = "mofore"

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"cluster.executor={self.executor}: choose {' or '.join(EXECUTORS)}.")
        if min(self.tasks_per_node, self.cpus_per_task, self.timeout_min) < 1:
            raise UserError("cluster: tasks_per_node, cpus_per_task and timeout_min must be at least 1.")
        if self.executor == "debug" and self.tasks_per_node > 1:
            raise UserError("cluster=debug runs one task in this process: use cluster=local for several.")


@dataclass
class SubmitConfig:
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def submit(words: list[str]) -> submitit.Job:
    """Check the configuration, submit one job, and return it. Logs lie in RUN/jobs."""
    ours = [word for word in words if word.lstrip("+").startswith("cluster")]
    overrides = [word for word in words if word not in ours]
    cluster = compose(SubmitConfig, ours).cluster
    config = compose(PretrainConfig, overrides)
    config.cut_batch(cluster.tasks_per_node)
    executor = submitit.AutoExecutor(Path(config.run_dir).absolute() / "jobs", cluster=cluster.executor)
    executor.update_parameters(
        name=cluster.name, nodes=1, tasks_per_node=cluster.tasks_per_node,
        cpus_per_task=cluster.cpus_per_task, timeout_min=cluster.timeout_min,
    )  # fmt: skip
    return executor.submit(PretrainJob(overrides))


def main(words: list[str]) -> int:
    """Submit, say where to look, and wait for the end. Ctrl-C ends the job, which saves first."""
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    try:
        job = submit(words)
        print(f"job {job.job_id}: {job.paths.stdout} and {job.paths.stderr}", flush=True)
        codes = job.results()
    except UserError as mistake:
        print(f"mofore: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        job.cancel(check=False)
        print(f"job {job.job_id} was told to stop; the same command goes on.", file=sys.stderr)
        return 130
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError) as failure:
        print(f"mofore: job {job.job_id} failed, its log: {job.paths.stderr}\n{failure}", file=sys.stderr)
        return 1
    if any(codes):
        print(
            f"mofore: job {job.job_id} ended with {max(codes)}, its log: {job.paths.stderr}", file=sys.stderr
        )
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
