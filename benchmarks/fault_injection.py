"""What a campaign of faults is made of: ranks as forked processes, ways to die within a step, disks that refuse."""

import contextlib
import os
import resource
import signal
import subprocess
import time
import types
from collections.abc import Callable
from pathlib import Path

import mofore.checkpoint.saver
import mofore.checkpoint.writer
import mofore.train

# The function that is replaced, by what the fault happens in; it dies when that is called for the n-th time.
WITHIN = {
    "step": (mofore.train, "backward_and_step"),
    "snapshot": (mofore.checkpoint.saver, "owned_shards"),
    "write": (mofore.checkpoint.writer.hashlib, "sha256"),
    "sync": (mofore.checkpoint.writer.os, "fsync"),
    "commit": (mofore.checkpoint.saver, "commit"),
    "rename": (mofore.checkpoint.writer.os, "replace"),
    "prune": (mofore.checkpoint.saver, "prune"),
    "removal": (mofore.checkpoint.writer.shutil, "rmtree"),
}


class Rank:
    """A forked process that runs one rank."""

    def __init__(
        self, words: list[str], environment: dict[str, str], log: Path, curse: Callable[[], None]
    ) -> None:
        self.code: int | None = None
        self.stopped = False
        self.pid = os.fork()
        if self.pid:
            return
        os.setsid()
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ |= environment
        curse()
        code = 1
        try:
            code = mofore.train.main(words)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        os._exit(code)

    @property
    def alive(self) -> bool:
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def send(self, number: signal.Signals) -> None:
        if self.alive:
            os.kill(self.pid, number)
            self.stopped |= number == signal.SIGSTOP

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.alive and time.monotonic() < end:
            time.sleep(0.02)
        return not self.alive


def die_within(place: str, nth: int) -> None:
    """Replace a function by one that kills this process when it is called for the n-th time."""
    module, name = WITHIN[place]
    real, calls = getattr(module, name), []

    def dying(*arguments, **rest):
        calls.append(1)
        if len(calls) == nth:
            if place == "removal":  # half a folder is gone already
                next(iter(Path(arguments[0]).iterdir())).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **rest)

    if place == "write":  # many small pieces, and death between two of them
        mofore.checkpoint.writer.SLAB = 4096

        class Digest:
            def __init__(self, data: bytes = b"") -> None:
                self.real = real(data)
                self.update = lambda part: dying_update(self.real.update, part)
                self.hexdigest = self.real.hexdigest

        def dying_update(update, part):
            calls.append(1)
            if len(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            update(part)

        module = _replaced_hashlib(module)
        module.sha256 = Digest
        mofore.checkpoint.writer.hashlib = module
        return
    setattr(module, name, dying)


def _replaced_hashlib(real):
    """A copy of the module's names: others use hashlib too."""
    copy = types.ModuleType("hashlib")
    copy.__dict__.update(real.__dict__)
    return copy


def fill(disk: Path, mounted: bool, nth: int) -> None:
    """From the n-th snapshot on, nothing more can be written."""
    real, calls = mofore.checkpoint.saver.write_shards, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == nth and mounted:
            with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
                while True:
                    file.write(bytes(2**16))
        elif len(calls) >= nth and not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))
        return real(*arguments)

    mofore.checkpoint.saver.write_shards = full


def mount(folder: Path) -> bool:
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True
    )
    return made.returncode == 0


def make_read_only(folder: Path) -> bool:
    """A view of the folder laid over it, which cannot be written to; not where a file in it is just being written."""
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        return False
    for _ in range(50):
        if not subprocess.run(
            ["mount", "-o", "remount,ro,bind", folder], capture_output=True
        ).returncode:
            return True
        time.sleep(0.01)
    subprocess.run(["umount", folder], check=True)
    return False


def session(leader: int) -> dict[int, int]:
    """Processes that a rank started, and theirs; each with its parent."""
    found = {}
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == leader and int(path.name) != leader and fields[0] != "Z":
                found[int(path.name)] = int(fields[1])
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""
