"""What many ranks read and send apart from checkpoints: samples, manifest, store, steps."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from benchmarks.processes import measure_memory
from benchmarks.simulated_ranks import Parameter, as_rank
from mofore.config import PretrainConfig
from mofore.data.frame_index import FrameIndex
from mofore.data.manifest import SCHEMA, read_manifest
from mofore.data.order import RankSampler, global_batch_indices
from mofore.parallel.liveness import Heartbeat

# Of 300 frames at 30 fps with a key frame every 250.
INDEX = FrameIndex(512 * np.arange(300), np.array([0, 250]), 512 * 300, Fraction(1, 15360)).pack()
VIDEOS_OF_A_SHARD = 1000  # videos of a larger file, in the generated manifest
CONNECTIONS_OF_A_RANK = 2  # to the store: torch's process group, the heartbeat
CLIENTS = 16  # that connect for real; each looks up the host's name, which can be slow
CONNECT = """
import sys, torch.distributed as dist
port, count = map(int, sys.argv[1:])
stores = [dist.TCPStore("127.0.0.1", port, is_master=False) for _ in range(count)]
print("connected", flush=True)
sys.stdin.read()
"""
PERIOD = 5.0  # seconds between two heartbeats, at engine.timeout of 25 and more


def check_sample_order(ranks: int, videos: int, global_batch: int, steps: int) -> int:
    """AssertionError unless the ranks together see the global batches, in order.

    Returns the number of samples compared. Half way, half as many ranks take over.
    """
    samples = 0
    for start, stop, count in ((0, steps // 2, ranks), (steps // 2, steps, ranks // 2)):
        micro_batch = global_batch // count
        of_ranks = [
            list(RankSampler(videos, global_batch, micro_batch, 0, start, stop, rank, count))
            for rank in range(count)
        ]
        for step in range(start, stop):
            together = [index for batches in of_ranks for index in batches[step - start]]
            assert together == global_batch_indices(step, videos, global_batch, 0), step
            samples += len(together)
    return samples


def time_order(videos: int, steps: int = 51) -> float:
    """Seconds that a rank takes to draw a global batch of 4,096, the median of `steps` epochs."""
    global_batch, seconds = min(4096, videos), []
    for epoch in range(steps):
        start = time.perf_counter()
        global_batch_indices(epoch * (videos // global_batch), videos, global_batch, 0)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class ManifestCost(NamedTuple):
    """Per row of a manifest whose videos are members of larger files."""

    file_bytes: float
    read_bytes: float  # that each rank reads from the file
    held_bytes: float  # of memory of each process, after reading
    peak_bytes: float  # while reading
    seconds: float


def measure_manifest(rows: int) -> ManifestCost:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.parquet"
        pq.write_table(generated_manifest(rows), path)
        read, start = _bytes_read(), time.perf_counter()
        with measure_memory() as memory:
            manifest = read_manifest(path)
        seconds, read = time.perf_counter() - start, _bytes_read() - read
        assert len(manifest) == rows
        counts = (path.stat().st_size, read, memory.held, memory.peak, seconds)
        return ManifestCost(*(count / rows for count in counts))


def generated_manifest(rows: int) -> pa.Table:
    """Videos of ten seconds in shards of thousands, without annotations."""
    rng, number = np.random.default_rng(0), np.arange(rows)
    sizes = rng.integers(10**5, 2 * 10**6, rows)
    frames = rng.integers(200, 400, rows)
    digests = rng.integers(0, 256, (rows, 32), dtype=np.uint8)
    columns: dict[str, Any] = {
        "uri": [f"shards/videos-{i // VIDEOS_OF_A_SHARD:06d}.tar" for i in number],
        "offset": np.cumsum(sizes) - sizes,
        "size": sizes,
        "frames": frames,
        "fps": np.full(rows, 30.0),
        "width": np.full(rows, 456),
        "height": np.full(rows, 256),
        "duration": frames / 30.0,
        "decoder": ["pyav"] * rows,
        "access": ["seek"] * rows,
        "index": [INDEX] * rows,
        "bad_frames": np.zeros(rows, dtype=np.int64),
        "digest": [digest.tobytes().hex() for digest in digests],
        "fingerprint": [digest[:8].tobytes().hex() for digest in digests],
    }
    nothing = pa.nulls(rows, pa.string())
    return pa.table({name: columns.get(name, nothing) for name in SCHEMA.names}, schema=SCHEMA)


def _bytes_read() -> int:
    """By system calls of this process."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


class CountedStore:
    """A store that counts the requests and the bytes of their values."""

    def __init__(self, store: dist.Store) -> None:
        self.store = store
        self.requests = self.bytes = 0

    def set(self, key: str, value: str) -> None:
        self._count(value.encode())
        self.store.set(key, value)

    def get(self, key: str) -> bytes:
        value = self.store.get(key)
        self._count(value)
        return value

    def check(self, keys: list[str]) -> bool:
        self._count(b"")
        return self.store.check(keys)

    def _count(self, value: bytes) -> None:
        self.requests += 1
        self.bytes += len(value)


class StoreCost(NamedTuple):
    """Of the heartbeats of all ranks: requests to the store, which rank 0 or its launcher holds."""

    requests_of_rank_0: int  # in a period
    requests_of_others: int  # of each, in a period
    report_bytes: float
    seconds_of_rank_0: float  # that its requests take, store and rank in one process
    open_files: int  # of the process that holds the store, for the connections of all ranks


def measure_heartbeats(ranks: int) -> StoreCost:
    """One period of the library's heartbeat on ranks 0 and 1, after every rank has reported."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store, costs = CountedStore(server), {}
    for rank in range(ranks):
        with as_rank(rank, ranks):
            _heartbeat(store)._report()
    for rank in (0, 1):
        heartbeat = _heartbeat(store)
        store.requests = store.bytes = 0
        start = time.perf_counter()
        with as_rank(rank, ranks):
            heartbeat._exchange()
        assert heartbeat.verdict is None, heartbeat.verdict
        costs[rank] = store.requests, store.bytes, time.perf_counter() - start
    requests, size, seconds = costs[0]
    files = round(CONNECTIONS_OF_A_RANK * ranks * _files_of_a_client(server))
    return StoreCost(requests, costs[1][0], size / requests, seconds, files)


def _heartbeat(store: CountedStore) -> Any:
    """It ends after one period, and does not wait for it."""
    heartbeat: Any = Heartbeat(5 * PERIOD)
    ends = iter([False, True])
    heartbeat.store, heartbeat.stopped = store, SimpleNamespace(wait=lambda _: next(ends))
    return heartbeat


def _files_of_a_client(server: dist.TCPStore) -> float:
    """Files that the store's process opens for one client; the clients are another process."""
    before = len(os.listdir("/proc/self/fd"))
    command = [sys.executable, "-c", CONNECT, str(server.port), str(CLIENTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as clients:
        assert clients.stdout
        assert clients.stdout.readline() == b"connected\n"
        opened = len(os.listdir("/proc/self/fd")) - before - len(("stdin", "stdout"))
        clients.communicate(b"")
    return opened / CLIENTS


class StepTraffic(NamedTuple):
    """Bytes that a rank receives in one step, by arithmetic; fp32."""

    keys: float  # of the contrastive loss, from all ranks
    gradients: float  # scattered
    weights: float  # gathered


def step_traffic(
    config: PretrainConfig, parameters: list[Parameter], width: int, stage: int, ranks: int
) -> StepTraffic:
    """Ring collectives: a gather or a scatter of n bytes moves n (W - 1) / W on each of W ranks.

    Stages 1 and 2 scatter the gradients and gather the updated weights. Stage 3 scatters the
    gradients, and gathers the teacher once and the trained weights twice, for forward and backward.
    """
    share = (ranks - 1) / ranks
    clips = config.global_batch * (config.data.targets + 1)
    trained = 4 * sum(p.size for p in parameters if p.group is not None)
    teacher = 4 * sum(p.size for p in parameters if p.group is None)
    gathered = 2 * trained + teacher if stage == 3 else trained
    return StepTraffic(share * 4 * clips * width, share * trained, share * gathered)


def agreement_bytes(ranks: int) -> int:
    """That each rank receives when the ranks compare a step."""
    facts = {"step": 10**6, "loss": 1.2345678901234567, "samples": "0" * 12}
    facts |= {"samples as drawn": True, "weights": 2**62}
    return ranks * len(json.dumps(facts))
