"""A real SLURM of two nodes on this machine, with accounting, while the tests run.

It needs root and Debian's packages:

    apt-get install slurm-wlm slurmdbd munge mariadb-server

munged -> mariadbd -> slurmdbd -> slurmctld -> one slurmd per node, each a child of this process on
its own ports. Partitions: low (preempted by high and requeued), patient (the same with a grace time
of 20 seconds), high, short (at most five minutes).
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = (
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "sbatch",
    "sacctmgr",
)
NODES = ("node1", "node2")


def missing() -> str | None:
    """Why a cluster cannot start here; None if it can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"no {', '.join(absent)}: apt-get install slurm-wlm slurmdbd munge mariadb-server"
    return None if os.geteuid() == 0 else "SLURM's daemons are started as root here"


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder, self.running = folder, dict[str, subprocess.Popen]()
        self.host = socket.gethostname().split(".")[0]
        self.conf = folder / "slurm.conf"

    def start(self) -> None:
        """Raises RuntimeError with the log of the daemon that does not answer."""
        for name in ("munge", "state", "log", "db"):
            (self.folder / name).mkdir()
        key = self.folder / "munge/munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        (self.folder / "munge").chmod(0o755)
        _resolve(NODES)
        socket_, database = self.folder / "munge/socket", self.folder / "db.sock"
        self._start(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={socket_}",
            *(f"--{name}-file={self.folder}/munge/{name}" for name in ("pid", "log", "seed")),
        )
        self._until("munged", socket_.exists)
        data = f"--datadir={self.folder / 'db'}"
        subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                "--user=root",
                data,
                "--auth-root-authentication-method=normal",
            ],
            check=True,
            capture_output=True,
        )
        self._start(
            "mariadbd",
            "--no-defaults",
            "--user=root",
            data,
            f"--socket={database}",
            "--skip-networking",
            f"--pid-file={self.folder}/db.pid",
            "--innodb-buffer-pool-size=64M",
        )
        sql = ["mariadb", "--no-defaults", "-S", str(database), "-e"]
        self._until("mariadbd", lambda: _quiet([*sql, "create database slurm_acct"]))
        self._write_conf(socket_, *_free_ports(2 + len(NODES)))
        os.environ["SLURM_CONF"] = str(self.conf)
        self._start("slurmdbd", "-D", MYSQL_UNIX_PORT=str(database))
        self._until("slurmdbd", lambda: _quiet(["sacctmgr", "-n", "list", "cluster"]))
        _quiet(["sacctmgr", "-i", "add", "cluster", "mini"])
        _quiet(["sacctmgr", "-i", "add", "account", "lab"])
        _quiet(["sacctmgr", "-i", "add", "user", "root", "account=lab"])
        self._start("slurmctld", "-D", "-c")
        self._until("slurmctld", lambda: _quiet(["scontrol", "ping"]))
        for node in NODES:
            self.start_node(node)
        self._until(
            "slurmctld",
            lambda: output_of("sinfo", "-h", "-p", "low", "-o", "%T %D") == f"idle {len(NODES)}",
        )

    def start_node(self, node: str) -> None:
        (self.folder / f"spool.{node}").mkdir(exist_ok=True)
        self._start("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """Simulate a power loss: kill the daemon, the steps, and all processes they started."""
        marks = {f"SLURMD_NODENAME={node}", f"SLURM_CONF={self.conf}"}
        tasks = {pid for pid in _processes() if marks <= set(_environment(pid))}
        steps = {_parent(pid) for pid in tasks} - tasks
        for pid in [self.running[node].pid, *steps, *tasks]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.running.pop(node).wait()

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        os.environ.pop("SLURM_CONF", None)

    def _start(self, program: str, *arguments: str, name: str = "", **environment: str) -> None:
        with (self.folder / "log" / f"{name or program}.out").open("a") as log:
            self.running[name or program] = subprocess.Popen(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | environment,
            )

    def _until(self, program: str, answers: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not answers():
            if time.monotonic() > end:
                log = (self.folder / "log" / f"{program}.out").read_text()
                raise RuntimeError(f"{program} does not answer: {log[-2000:]}")
            time.sleep(0.1)

    def _write_conf(self, munge: Path, control: int, accounting: int, *nodes: int) -> None:
        common = f"AuthType=auth/munge\nAuthInfo=socket={munge}\n"
        conf = self.folder / "slurmdbd.conf"
        conf.write_text(
            f"{common}DbdHost={self.host}\nDbdAddr=127.0.0.1\nDbdPort={accounting}\nSlurmUser=root\n"
            "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=root\nStorageLoc=slurm_acct\n"
            f"LogFile={self.folder}/log/slurmdbd.log\nPidFile={self.folder}/slurmdbd.pid\n"
        )
        conf.chmod(0o600)
        lines = "".join(
            f"NodeName={node} NodeHostname={self.host} NodeAddr=127.0.0.1 Port={port} "
            "CPUs=8 RealMemory=16000 State=UNKNOWN\n"
            for node, port in zip(NODES, nodes, strict=True)
        )
        everywhere = f"Nodes={','.join(NODES)} State=UP"
        self.conf.write_text(f"""{common}ClusterName=mini
SlurmctldHost={self.host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool.%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={munge}
AccountingStoragePort={accounting}
AccountingStorageEnforce=limits
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout=10
MpiDefault=none
ReturnToService=2
KillWait=20
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{lines}PartitionName=low {everywhere} Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=patient {everywhere} MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=high {everywhere} MaxTime=INFINITE PriorityTier=10
PartitionName=short {everywhere} MaxTime=5 PriorityTier=1
""")


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _quiet(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _resolve(names: tuple[str, ...]) -> None:
    """The ranks meet on the first node of a job, so its name must resolve to this machine."""
    hosts = Path("/etc/hosts")
    known = hosts.read_text().split()
    with hosts.open("a") as file:
        file.writelines(f"127.0.0.1 {name}\n" for name in names if name not in known)


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _environment(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
