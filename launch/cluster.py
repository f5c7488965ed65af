"""`cluster.KEY=VALUE` -> ClusterConfig: where a job runs and with which resources."""

import re
import shlex
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from mofore.config import compose
from mofore.errors import UserError
from mofore.gpus import GPUS, find_gpu
from mofore.quoting import to_override
from mofore.settings import setting

EXECUTORS = ("slurm", "local", "debug")
LITERAL_KEYS = ("cluster.sbatch_args", "cluster.srun_args", "cluster.prologue")
TIME_FORMATS = (  # sbatch's, then 2d12h and the like
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
    r"((?P<days>\d+)d)?((?P<hours>\d+)h)?((?P<minutes>\d+)m(in)?)?((?P<seconds>\d+)s)?",
)
SECONDS_PER = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass
class ClusterConfig:
    """Resources of a job. `cluster=NAME` takes configs/cluster/NAME.yaml."""

    executor: str = setting(
        "local", "slurm, local (processes of this machine) or debug (this process)."
    )
    name: str = setting("mofore", "Name of the job.")
    nodes: str = setting(
        "1", "Number of nodes, or a range 1-4: each start of the job runs on the nodes it gets."
    )
    gpus_per_node: int = setting(0, "GPUs per node; 0 trains on CPUs.")
    gpu_type: str | None = setting(
        None, "GPU type, e.g. h100: warns if the run needs more memory; null: no check."
    )
    tasks_per_node: int | None = setting(
        None, "Ranks per node; null starts one per GPU, or one without GPUs."
    )
    cpus_per_task: int = setting(2, "CPU cores per rank, for its decoding workers too.")
    mem: str | None = setting(None, "Memory per node, e.g. 64G; null takes SLURM's default.")
    time: str = setting(
        "24h", "Time limit: 90m, 24h, 2d12h, or in sbatch's formats MINUTES, HH:MM:SS, D-HH."
    )
    partition: str | None = setting(None, "SLURM partition; null takes the default one.")
    account: str | None = setting(None, "SLURM account; null takes your default one.")
    qos: str | None = setting(None, "SLURM quality of service.")
    constraint: str | None = setting(None, "Node features that the job needs.")
    exclude: str | None = setting(None, "Nodes not to use.")
    nodelist: str | None = setting(None, "Nodes that the job must use.")
    reservation: str | None = setting(None, "SLURM reservation to run in.")
    comment: str | None = setting(None, "Comment stored with the job.")
    mail_user: str | None = setting(None, "Address that SLURM sends mail to.")
    mail_type: str | None = setting(None, "Events that SLURM sends mail about, e.g. END,FAIL.")
    sbatch_args: str = setting("", "More options of sbatch, e.g. '--nice=10 --exclusive'.")
    srun_args: str = setting("", "Options of srun, e.g. '--container-image=IMAGE --mpi=none'.")
    prologue: str = setting("", "Shell lines before the ranks start, e.g. 'module load cuda'.")
    python: str | None = setting(
        None, "Command that starts Python in the job, for containers; null is this interpreter."
    )
    network_interface: str | None = setting(
        None, "Network interface of gloo and NCCL, e.g. ib0; null lets them choose."
    )
    signal_delay: int = setting(
        120, "Seconds before the time limit at which the run saves and the job is requeued."
    )
    max_failures: int = setting(
        3, "Starts in a row without a new checkpoint after which the job is not requeued."
    )

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"cluster.executor={self.executor}: choose {', '.join(EXECUTORS)}.")
        self._check_counts()
        if self.gpu_type is not None and find_gpu(self.gpu_type) is None:
            known = ", ".join(gpu.name for gpu in GPUS)
            raise UserError(f"cluster.gpu_type={self.gpu_type} is not known: give null or {known}.")
        if self.executor != "slurm" and self.nodes != "1":
            raise UserError(
                f"cluster={self.executor} is this machine: cluster.nodes={self.nodes} must be 1."
            )
        if self.executor == "debug" and self.tasks > 1:
            raise UserError(
                "cluster=debug runs one task in this process: use cluster=local for several."
            )
        if self.seconds < 2 * self.signal_delay:
            raise UserError(
                f"cluster.time={self.time} leaves no time to train: the run saves "
                f"cluster.signal_delay={self.signal_delay} seconds before the limit (SLURM may "
                "send the signal a minute earlier still). Give a longer time or a shorter delay."
            )
        for option in shlex.split(self.sbatch_args):
            if not option.startswith("--"):
                raise UserError(
                    f"cluster.sbatch_args: {option!r} is not an option: write "
                    "'--nice=10 --exclusive'."
                )

    def _check_counts(self) -> None:
        for key, least in {
            "tasks_per_node": 1,
            "cpus_per_task": 1,
            "max_failures": 1,
            "gpus_per_node": 0,
            "signal_delay": 0,
        }.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise UserError(f"cluster.{key}={value} must be at least {least}.")
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?", self.nodes) or self.min_nodes > self.max_nodes:
            raise UserError(f"cluster.nodes={self.nodes}: give a number, 2, or a range, 1-4.")

    @property
    def min_nodes(self) -> int:
        return int(self.nodes.split("-")[0])

    @property
    def max_nodes(self) -> int:
        return int(self.nodes.split("-")[-1])

    @property
    def tasks(self) -> int:
        """Ranks per node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def world_sizes(self) -> list[int]:
        """Every number of ranks that the job may get."""
        return [self.tasks * nodes for nodes in range(self.min_nodes, self.max_nodes + 1)]

    @property
    def seconds(self) -> int:
        """The time limit."""
        for pattern in TIME_FORMATS:
            match = re.fullmatch(pattern, self.time)
            if match and self.time:
                counts = match.groupdict()
                return sum(int(counts[unit] or 0) * SECONDS_PER[unit] for unit in counts)
        raise UserError(
            f"cluster.time={self.time} is not a time: write 90m, 24h, 2d12h, or one of sbatch's "
            "formats, HH:MM:SS or D-HH."
        )

    def single_task(self) -> "ClusterConfig":
        """The same for a command of one process, with at most one GPU."""
        return replace(self, nodes="1", tasks_per_node=1, gpus_per_node=min(self.gpus_per_node, 1))


@dataclass
class SubmitConfig:
    """`python launch/submit.py cluster=NAME cluster.KEY=VALUE ...`."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def compose_cluster(overrides: list[str], config_dir: Path | None = None) -> ClusterConfig:
    """Options and shell lines (LITERAL_KEYS) are taken literally, without hydra's quotes."""
    quoted = []
    for override in overrides:
        key, _, value = override.partition("=")
        quoted.append(to_override(key, value) if key in LITERAL_KEYS else override)
    return compose(SubmitConfig, quoted, config_dir).cluster


def cluster_overrides_of(cluster: ClusterConfig) -> list[str]:
    """The overrides from which `compose_cluster` makes this configuration, one per key."""
    overrides = []
    for each in fields(cluster):
        key, value = f"cluster.{each.name}", getattr(cluster, each.name)
        overrides.append(f"{key}={value}" if key in LITERAL_KEYS else to_override(key, value))
    return overrides
