"""Ranks as forked processes, and the processes that they leave behind."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import mofore.train

POLL = 0.02  # seconds


class RankProcess:
    """A forked process that runs one rank, in a new session.

    inject: called in the rank before it starts. code: the exit code, None while it runs. stopped:
    whether it got SIGSTOP.
    """

    def __init__(
        self, overrides: list[str], env: dict[str, str], log: Path, inject: Callable[[], None]
    ) -> None:
        self.code: int | None = None
        self.stopped = False
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:  # an exception that leaves here would run the campaign in this process
            os.setsid()
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.environ |= env
            inject()
            code = mofore.train.main(overrides)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)

    @property
    def running(self) -> bool:
        if self.code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal if the rank still runs."""
        if self.running:
            os.kill(self.pid, number)
            self.stopped |= number == signal.SIGSTOP

    def wait(self, seconds: float) -> bool:
        """Whether the rank has ended within so many seconds."""
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            time.sleep(POLL)
        return not self.running


def session_processes(leader: int) -> dict[int, int]:
    """Other processes in the session of a rank, without zombies: pid -> pid of its parent."""
    found = {}
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent, _, session = (path / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            if int(session) == leader and int(path.name) != leader and state != "Z":
                found[int(path.name)] = int(parent)
    return found


def command_line(pid: int) -> str:
    """Empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def run_in_fork(work: Callable[[], object]) -> None:
    """Keep threads that `work` starts out of this process: only a process without them may fork."""
    pid = os.fork()
    if not pid:
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("the videos could not be written")
