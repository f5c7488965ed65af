"""The kinds of faults, and how each one happens to the ranks of a campaign."""

import os
import signal
import time

from benchmarks.fault_campaign import TIMEOUT, Campaign, newest_step
from benchmarks.fault_injection import (
    KILL_POINTS,
    MAX_CALLS,
    RANK_0_POINTS,
    fill_disk_at,
    kill_at,
    make_read_only,
    unmount,
)
from benchmarks.fault_processes import RankProcess, session_processes
from mofore.checkpoint.format import META_NAME, list_checkpoints

KILLED_IN = "one rank killed in "
SIGNALS = ("SIGTERM", "SIGUSR2", "SIGINT")
SECOND_SIGINT, ALL_KILLED = "second SIGINT to all", "all ranks killed"
WORKER_KILLED, RANK_STOPPED = "worker killed", "one rank stopped"
DISK_FULL, DISK_READ_ONLY = "disk full", "disk read-only"
DAMAGE = ("file deleted", "bit flipped", "file truncated", "checkpoint.json deleted")
KINDS = (
    *(f"{KILLED_IN}{point}" for point in KILL_POINTS),
    *(f"{name} to all" for name in SIGNALS),
    SECOND_SIGINT,
    ALL_KILLED,
    WORKER_KILLED,
    RANK_STOPPED,
    DISK_FULL,
    DISK_READ_ONLY,
    *DAMAGE,
)
END_SECONDS = 6 * TIMEOUT  # within which all ranks must end after a fault
LAST_STEP = 6  # a fault happens within so many steps after the newest checkpoint


def inject_fault(campaign: Campaign, kind: str) -> None:
    """Start the ranks, let the fault happen, and check how they end."""
    before = newest_step(campaign.run_dir)
    if kind in DAMAGE:
        happened = _damage_newest(campaign, kind)
        _signal_from_outside(campaign, ALL_KILLED, before=0)  # they resume from the one before
        before = 0
    elif kind.startswith(KILLED_IN):
        happened = _kill_one_rank(campaign, kind.removeprefix(KILLED_IN))
    elif kind == DISK_FULL:
        happened = _fill_disk(campaign)
    elif kind == DISK_READ_ONLY:
        happened = _make_read_only(campaign, before)
    else:
        happened = _signal_from_outside(campaign, kind, before)
    counter = campaign.happened if happened else campaign.missed
    counter[kind] += 1
    campaign.check(kind, before)


def _kill_one_rank(campaign: Campaign, point: str) -> bool:
    rng = campaign.rng
    rank = 0 if point in RANK_0_POINTS else rng.randrange(campaign.ranks)
    nth = rng.randint(1, MAX_CALLS.get(point, 6))
    with campaign.start_ranks(campaign.run_dir, rank, lambda: kill_at(point, nth)) as ranks:
        campaign.expect_end(ranks, END_SECONDS)
        return ranks[rank].code == -signal.SIGKILL


def _fill_disk(campaign: Campaign) -> bool:
    nth, disk = campaign.rng.randint(1, 6), campaign.disk

    def inject() -> None:
        fill_disk_at(disk, campaign.mounted, nth)

    with campaign.start_ranks(campaign.run_dir, 0, inject) as ranks:
        campaign.expect_end(ranks, END_SECONDS)
        happened = any(rank.code != 0 for rank in ranks)
    (disk / "filler").unlink(missing_ok=True)
    return happened


def _make_read_only(campaign: Campaign, before: int) -> bool:
    checkpoints = campaign.run_dir / "checkpoints"
    with campaign.start_ranks(campaign.run_dir) as ranks:
        campaign.wait_for_step(ranks, before + campaign.rng.randint(1, LAST_STEP))
        happened = checkpoints.is_dir() and make_read_only(checkpoints)
        campaign.expect_end(ranks, END_SECONDS)
        if happened:
            unmount(checkpoints)
            happened = any(rank.code != 0 for rank in ranks)
    return happened


def _signal_from_outside(campaign: Campaign, kind: str, before: int) -> bool:
    overrides = ("workers=1",) if kind == WORKER_KILLED else ()
    with campaign.start_ranks(campaign.run_dir, overrides=overrides) as ranks:
        campaign.wait_for_step(ranks, before + campaign.rng.randint(1, LAST_STEP))
        time.sleep(campaign.rng.random() * 0.3)
        happened = _send(campaign, kind, ranks)
        campaign.expect_end(ranks, END_SECONDS)
    return happened


def _send(campaign: Campaign, kind: str, ranks: list[RankProcess]) -> bool:
    """Send the signals of a fault; whether a process was there to get them."""
    running = [rank for rank in ranks if rank.running]
    if kind == WORKER_KILLED:
        return _kill_worker(running)
    if kind == RANK_STOPPED:
        campaign.rng.choice(ranks).send(signal.SIGSTOP)
        return len(running) == len(ranks)
    special = {ALL_KILLED: signal.SIGKILL, SECOND_SIGINT: signal.SIGINT}
    number = special.get(kind) or signal.Signals[kind.split()[0]]
    for rank in ranks:
        rank.send(number)
    if kind == SECOND_SIGINT:
        time.sleep(0.02)
        for rank in ranks:
            rank.send(number)
    return bool(running)


def _kill_worker(running: list[RankProcess]) -> bool:
    """Kill one process that decodes: a child of a rank's forkserver."""
    parents: dict[int, int] = {}
    for rank in running:
        parents |= session_processes(rank.pid)
    workers = [pid for pid, parent in parents.items() if parent in parents]
    for pid in workers[:1]:
        os.kill(pid, signal.SIGKILL)
    return bool(workers)


def _damage_newest(campaign: Campaign, kind: str) -> bool:
    """Damage the newest checkpoint between two starts, if there is one before it.

    False also if an earlier fault has already deleted the file.
    """
    checkpoints = list_checkpoints(campaign.run_dir)
    if len(checkpoints) < 2:
        return False
    folder = checkpoints[-1][1]
    pattern = META_NAME if kind == "checkpoint.json deleted" else "*.safetensors"
    paths = sorted(folder.glob(pattern))
    if not paths:
        return False
    path = campaign.rng.choice(paths)
    if kind.endswith("deleted"):
        path.unlink()
    elif kind == "file truncated":
        os.truncate(path, campaign.rng.randrange(path.stat().st_size))
    else:
        data = bytearray(path.read_bytes())
        data[campaign.rng.randrange(len(data))] ^= 1 << campaign.rng.randrange(8)
        path.write_bytes(data)
    return True
