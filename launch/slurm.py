"""ClusterConfig -> submitit's parameters -> an sbatch script -> `sbatch --test-only`."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from submitit.slurm.slurm import _make_sbatch_string

from mofore.errors import UserError
from mofore.launch.cluster import ClusterConfig


def sbatch_parameters(
    cluster: ClusterConfig, setup: list[str], teardown: list[str], dependency: str | None = None
) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor; options it has no name for are passed through."""
    additional: dict[str, Any] = {"nodes": cluster.nodes, "requeue": True}
    additional |= {"reservation": cluster.reservation} if cluster.reservation else {}
    additional |= {"kill-on-invalid-dep": "yes"} if dependency else {}
    for option in shlex.split(cluster.sbatch_args):
        key, _, value = option.removeprefix("--").partition("=")
        additional[key] = value or True
    # With one task per node and a range of nodes, SLURM would take --ntasks-per-node=1 as one task
    # in all and give as few nodes as that needs. So srun gets the option instead.
    one_task = cluster.tasks == 1 and cluster.min_nodes < cluster.max_nodes
    optional = {
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
        "ntasks_per_node": None if one_task else cluster.tasks,
        "gpus_per_node": cluster.gpus_per_node or None,
        "dependency": dependency,
    }
    srun_args = ["--ntasks-per-node=1"] if one_task else []
    return {key: value for key, value in optional.items() if value is not None} | {
        "job_name": cluster.name,
        "nodes": cluster.min_nodes,
        "cpus_per_task": cluster.cpus_per_task,
        "time": -(-cluster.seconds // 60),
        "signal_delay_s": cluster.signal_delay,
        "stderr_to_stdout": True,  # one log per rank, lines in order
        "wckey": "mofore",
        "setup": setup,
        "teardown": teardown,
        "srun_args": [*srun_args, *shlex.split(cluster.srun_args)],
        "additional_parameters": additional,
    }


def sbatch_script(cluster: ClusterConfig, parameters: dict[str, Any], folder: Path) -> str:
    """The script that submitit submits with these parameters, up to the job's id."""
    python = cluster.python or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command=command, folder=folder, **parameters)


def check_slurm(cluster: ClusterConfig, script: str) -> None:
    """UserError, with the remedy, if SLURM would refuse the job or could never start it."""
    for program in ("sbatch", "srun", "scontrol"):
        if shutil.which(program) is None:
            raise UserError(
                f"cluster=slurm: there is no {program} on the path. Submit from a login node of "
                "the cluster (often after `module load slurm`), or use cluster=local."
            )
    partitions = _partitions()
    default = next((name for name, each in partitions.items() if each.is_default), None)
    name = cluster.partition or default
    if cluster.partition and cluster.partition not in partitions:
        raise UserError(
            f"cluster.partition={name}: there is no such partition; there are "
            f"{', '.join(partitions)}."
        )
    if name:
        _check_partition(cluster, name, partitions[name])
    test = ["sbatch", "--test-only"]
    answer = subprocess.run(test, input=script, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(explain(answer.stderr))


class Partition(NamedTuple):
    is_default: bool
    state: str
    nodes: int
    limit: int | None  # longest time of a job in seconds; None: unlimited


def _partitions() -> dict[str, Partition]:
    """All partitions by name."""
    command = ["sinfo", "--noheader", "--format=%P|%l|%D|%a"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        reason = answer.stderr.strip() or "sinfo failed"
        raise UserError(f"SLURM does not answer: {reason}. Is its controller running?")
    found: dict[str, Partition] = {}
    for line in answer.stdout.splitlines():  # one per kind of node
        label, limit, nodes, state = line.split("|")
        name, unlimited = label.rstrip("*"), limit in ("infinite", "n/a")
        seconds = None if unlimited else ClusterConfig(time=limit, signal_delay=0).seconds
        others = found[name].nodes if name in found else 0
        found[name] = Partition(label.endswith("*"), state, others + int(nodes), seconds)
    return found


def _check_partition(cluster: ClusterConfig, name: str, partition: Partition) -> None:
    if partition.state != "up":
        raise UserError(
            f"cluster.partition={name} is {partition.state}: it accepts no jobs now. "
            "Choose another."
        )
    if cluster.min_nodes > partition.nodes:
        raise UserError(
            f"cluster.nodes={cluster.nodes}: partition {name} has {partition.nodes} node(s). Ask "
            "for fewer, or for a range that begins lower (1-2): an elastic run trains on the "
            "nodes it gets."
        )
    if partition.limit is not None and cluster.seconds > partition.limit:
        raise UserError(
            f"cluster.time={cluster.time} is longer than partition {name} allows "
            f"({partition.limit // 60} minutes). Ask for less: the run saves before the limit, is "
            "requeued and resumes."
        )


REMEDIES = {
    "submit limit": "you may not have so many jobs in the queue: wait, or submit fewer "
    "(`sacctmgr show associations`)",
    "account": "give cluster.account=... (`sacctmgr show associations user=$USER` lists yours)",
    "qos": "give cluster.qos=... of those that your account may use (`sacctmgr show qos`)",
    "time limit": "give a shorter cluster.time; the run saves before the limit and is requeued",
    "node configuration": "no node has so many CPUs, GPUs or so much memory: lower "
    "cluster.gpus_per_node, cluster.mem or cluster.cpus_per_task (times cluster.tasks_per_node), "
    "or see `sinfo -o '%P %c %m %G'`",
    "gres": "no node has such GPUs: lower cluster.gpus_per_node, or see `sinfo -o '%P %G'`",
    "node count": "ask for fewer nodes (cluster.nodes), or for a range, 1-2",
    "feature": "`sinfo -o '%f'` lists the features that cluster.constraint may name",
    "node name": "cluster.nodelist and cluster.exclude must name nodes that `sinfo -N` lists",
    "unrecognized option": "see `man sbatch` for the options that cluster.sbatch_args may hold",
}


def explain(stderr: str) -> str:
    """sbatch's message and its remedy."""
    lines = [re.sub(r"^(sbatch: )?(error: )?", "", line) for line in stderr.splitlines()]
    # the last line may only say that the submission failed; the lines before it say why
    parts = dict.fromkeys(line.replace("allocation failure: ", "") for line in lines if line)
    message = "; ".join(parts)
    remedies = [text for sign, text in REMEDIES.items() if sign in message.lower()]
    remedy = remedies[0] if remedies else "see `man sbatch`"
    return f"SLURM refuses the job: {message}. Nothing was submitted: {remedy}."
