"""What a job may take, and what SLURM says to it before anything is submitted.

cluster.KEY=VALUE -> ClusterConfig -> submitit's parameters -> an sbatch script -> `sbatch --test-only`
"""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from mofore.errors import UserError

EXECUTORS = ("slurm", "local", "debug")
TIMES = (  # as sbatch reads them, and as people write them
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
    r"((?P<days>\d+)d)?((?P<hours>\d+)h)?((?P<minutes>\d+)m(in)?)?((?P<seconds>\d+)s)?",
)
IN_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


@dataclass
class ClusterConfig:
    """Where a job runs and with how much. `cluster=NAME` takes configs/cluster/NAME.yaml."""

    executor: str = "local"  # slurm, local (processes of this machine), debug (this process)
    name: str = "mofore"  # of the job
    nodes: str = "1"  # or a range, 1-4: a requeued job goes on with what it gets
    gpus_per_node: int = 0
    tasks_per_node: int | None = None  # ranks; None: one a GPU, or one
    cpus_per_task: int = 2
    mem: str | None = None  # of a node: 64G
    time: str = "24h"  # 90m, 24h, 2d12h, or as sbatch writes it: minutes, HH:MM:SS, D-HH
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None  # nodes
    nodelist: str | None = None
    reservation: str | None = None
    comment: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    sbatch_args: str = ""  # any other options of sbatch: --nice=10 --exclusive
    srun_args: str = ""  # options of srun: --container-image=IMAGE --mpi=none
    prologue: str = ""  # shell lines before the ranks start: module load cuda
    python: str | None = None  # the interpreter's command, for containers; None: this one
    network_interface: str | None = None  # network interface of gloo and NCCL: ib0
    signal_delay: int = 120  # seconds before the time limit that the job saves and is requeued
    max_failures: int = 3  # starts in a row that may fail without a new checkpoint

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise UserError(f"cluster.executor={self.executor}: choose {', '.join(EXECUTORS)}.")
        ranks = 1 if self.tasks_per_node is None else self.tasks_per_node
        if (
            min(ranks, self.cpus_per_task, self.max_failures) < 1
            or min(self.gpus_per_node, self.signal_delay) < 0
        ):
            raise UserError(
                "cluster: tasks_per_node, cpus_per_task and tries must be at least 1, gpus_per_node and "
                "signal_delay not below 0."
            )
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?", self.nodes) or self.fewest > self.most:
            raise UserError(
                f"cluster.nodes={self.nodes}: give a number, 2, or a range of them, 1-4."
            )
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
                f"cluster.time={self.time} leaves no time to train: the job saves cluster.signal_delay="
                f"{self.signal_delay} seconds before its limit (SLURM may tell it a minute earlier still). "
                "Give a longer time, or a shorter delay."
            )
        for option in shlex.split(self.sbatch_args):
            if not option.startswith("--"):
                raise UserError(
                    f"cluster.sbatch_args: {option!r} is no option: write '--nice=10 --exclusive'."
                )

    @property
    def fewest(self) -> int:
        return int(self.nodes.split("-")[0])

    @property
    def most(self) -> int:
        return int(self.nodes.split("-")[-1])

    @property
    def tasks(self) -> int:
        """Ranks of a node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def worlds(self) -> list[int]:
        """Every number of ranks that the job may get."""
        return [self.tasks * nodes for nodes in range(self.fewest, self.most + 1)]

    @property
    def seconds(self) -> int:
        """The time limit."""
        for pattern in TIMES:
            match = re.fullmatch(pattern, self.time)
            if match and self.time:
                return sum(
                    int(count or 0) * IN_SECONDS[unit] for unit, count in match.groupdict().items()
                )
        raise UserError(
            f"cluster.time={self.time} is no time: write 90m, 24h, 2d12h, or as sbatch does, HH:MM:SS or D-HH."
        )

    def alone(self) -> "ClusterConfig":
        """The same, for a task of one process: it takes one GPU at most."""
        return replace(self, nodes="1", tasks_per_node=1, gpus_per_node=min(self.gpus_per_node, 1))


def sbatch_parameters(
    cluster: ClusterConfig, setup: list[str], teardown: list[str], dependency: str | None = None
) -> dict[str, Any]:
    """For submitit's SlurmExecutor. What it has no name for goes through as it is."""
    more: dict[str, Any] = {"nodes": cluster.nodes, "requeue": True}
    more |= {"reservation": cluster.reservation} if cluster.reservation else {}
    more |= {"kill-on-invalid-dep": "yes"} if dependency else {}
    for option in shlex.split(cluster.sbatch_args):
        key, _, value = option.removeprefix("--").partition("=")
        more[key] = value or True
    # of a range of nodes SLURM gives as few as the tasks need, and one task a node counts as one task in all
    lone = cluster.tasks == 1 and cluster.fewest < cluster.most
    named = {
        "mem": cluster.mem,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "nodelist": cluster.nodelist,
        "comment": cluster.comment,
        "mail_user": cluster.mail_user,
        "mail_type": cluster.mail_type,
        "ntasks_per_node": None if lone else cluster.tasks,
        "gpus_per_node": cluster.gpus_per_node or None,
        "dependency": dependency,
    }
    return {key: value for key, value in named.items() if value is not None} | {
        "job_name": cluster.name,
        "nodes": cluster.fewest,
        "cpus_per_task": cluster.cpus_per_task,
        "time": -(-cluster.seconds // 60),
        "signal_delay_s": cluster.signal_delay,
        "stderr_to_stdout": True,  # one file a rank, its lines in the order in which they were said
        "wckey": "mofore",
        "setup": setup,
        "teardown": teardown,
        "srun_args": [*(["--ntasks-per-node=1"] if lone else []), *shlex.split(cluster.srun_args)],
        "additional_parameters": more,
    }


def sbatch_script(cluster: ClusterConfig, parameters: dict[str, Any], folder: Path) -> str:
    """The script that submitit will submit; its own command differs in nothing but the job's id."""
    python = cluster.python or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command=command, folder=folder, **parameters)


def check_slurm(cluster: ClusterConfig, script: str) -> None:
    """UserError, with what to do, where SLURM would not take the job or could never start it."""
    for program in ("sbatch", "srun", "scontrol"):
        if shutil.which(program) is None:
            raise UserError(
                f"cluster=slurm: there is no {program} on the path. Submit from a login node of the cluster (often "
                "after `module load slurm`), or use cluster=local."
            )
    partitions = _partitions()
    name = cluster.partition or next(
        (each for each, facts in partitions.items() if facts["default"]), None
    )
    if cluster.partition and cluster.partition not in partitions:
        raise UserError(
            f"cluster.partition={name}: there is none of that name; there are {', '.join(partitions)}."
        )
    if name:
        _check_partition(cluster, name, partitions[name])
    asked = subprocess.run(
        ["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise UserError(explain(asked.stderr))


def _partitions() -> dict[str, dict[str, Any]]:
    """By name: is it the default, its longest time in seconds (None: any), its nodes and their state."""
    ask = ["sinfo", "--noheader", "--format=%P|%l|%D|%c|%a"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(
            f"SLURM does not answer: {answer.stderr.strip() or 'sinfo failed'}. Is its controller up?"
        )
    found: dict[str, dict[str, Any]] = {}
    for line in answer.stdout.splitlines():
        name, limit, nodes, _, state = line.split("|")
        facts = found.setdefault(
            name.rstrip("*"), {"default": name.endswith("*"), "nodes": 0, "state": state}
        )
        facts["nodes"] += int(nodes)
        facts["limit"] = (
            None
            if limit in ("infinite", "n/a")
            else ClusterConfig(time=limit, signal_delay=0).seconds
        )
    return found


def _check_partition(cluster: ClusterConfig, name: str, facts: dict[str, Any]) -> None:
    if facts["state"] != "up":
        raise UserError(
            f"cluster.partition={name} is {facts['state']}: it takes no jobs now. Choose another."
        )
    if cluster.fewest > facts["nodes"]:
        raise UserError(
            f"cluster.nodes={cluster.nodes}: partition {name} has {facts['nodes']} node(s). Ask for fewer, or for a "
            "range that begins lower (1-2): an elastic run goes on with what it gets."
        )
    if facts["limit"] is not None and cluster.seconds > facts["limit"]:
        raise UserError(
            f"cluster.time={cluster.time} is longer than partition {name} allows ({facts['limit'] // 60} minutes): ask "
            "for less; the run saves before the limit, is requeued and goes on."
        )


REMEDIES = {
    "submit limit": "so many jobs of yours may not wait at once: wait, or submit fewer (`sacctmgr show associations`)",
    "account": "give cluster.account=... (`sacctmgr show associations user=$USER` lists yours)",
    "qos": "give cluster.qos=... of those that your account may use (`sacctmgr show qos`)",
    "time limit": "give a shorter cluster.time; the run saves before the limit and is requeued",
    "node configuration": "no node has so many CPUs, GPUs or so much memory: lower cluster.gpus_per_node, cluster.mem or "
    "cluster.cpus_per_task (times cluster.tasks_per_node), or see `sinfo -o '%P %c %m %G'`",
    "gres": "no node has such GPUs: lower cluster.gpus_per_node, or see `sinfo -o '%P %G'`",
    "node count": "ask for fewer nodes (cluster.nodes), or for a range, 1-2",
    "feature": "`sinfo -o '%f'` lists the features that cluster.constraint may name",
    "node name": "cluster.nodelist and cluster.exclude must name nodes that `sinfo -N` lists",
    "unrecognized option": "see `man sbatch` for what cluster.sbatch_args may hold",
}


def explain(said: str) -> str:
    """sbatch's own words, and what to do about them."""
    lines = [re.sub(r"^(sbatch: )?(error: )?", "", line) for line in said.splitlines()]
    # what follows is that the submission failed, and why; what precedes may say more of it
    words = "; ".join(
        dict.fromkeys(line.replace("allocation failure: ", "") for line in lines if line)
    )
    low = words.lower()
    remedy = next((each for sign, each in REMEDIES.items() if sign in low), "see `man sbatch`")
    return f"SLURM refuses the job: {words}. Nothing was submitted: {remedy}."
