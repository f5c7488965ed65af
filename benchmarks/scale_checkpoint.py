"""The checkpoint of many ranks: its files, and what a resume opens and reads, rank by rank.

Small checkpoints are written and read for real, by the library's own functions. Of large models
only the shapes exist: their slices have no values, and their files are not written.
"""

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.simulated_ranks import Parameter, as_rank, rank_state, tensor_shapes
from mofore.checkpoint import reader, verify
from mofore.checkpoint.layout import Layout
from mofore.checkpoint.reader import Checkpoint
from mofore.checkpoint.writer import (
    commit,
    file_header,
    owned_shards,
    split_replicated,
    write_shards,
)
from mofore.types import Shard

State = dict[str, Tensor]  # every tensor of the training state, flattened, f32


class RankCost(NamedTuple):
    """What one rank does to resume."""

    verified: int  # files that it opens and reads whole, to verify them
    opened: int  # files that it opens to read its state
    bytes_read: int  # of its state
    bytes_received: int  # of its state, from other ranks


def random_state(parameters: list[Parameter]) -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator).flatten()
        for name, shape in tensor_shapes(parameters).items()
    }


def write_checkpoint(
    run_dir: Path, parameters: list[Parameter], stage: int, ranks: int, state: State
) -> Path:
    """A committed checkpoint of step 1, each file of it written as its rank would write it."""
    shapes, files = tensor_shapes(parameters), {}
    temporary = run_dir / "checkpoints" / ".step-1.writing"
    temporary.mkdir(parents=True)
    for rank in range(ranks):
        held = rank_state(
            parameters, stage, rank, ranks, lambda name, start, stop: state[name][start:stop]
        )
        with as_rank(rank, ranks):
            shards = list(owned_shards(held))
        path = temporary / f"rank-{rank:05d}.safetensors"
        buffer = torch.cat([torch.empty(0), *(shard.values for shard in shards)])
        files[path.name] = write_shards(path, shards, buffer, shapes)
    final = run_dir / "checkpoints" / "step-1"
    commit(temporary, final, {"step": 1, "shapes": shapes, "files": files})
    return final


def resume(
    folder: Path, parameters: list[Parameter], stage: int, ranks: int, state: State
) -> list[RankCost]:
    """Let every rank verify and load its part; AssertionError if it is not the part of `state`."""
    meta = verify.read_meta(folder)
    assert isinstance(meta, dict), meta
    shares, verified = [], []
    for rank in range(ranks):
        with as_rank(rank, ranks), count_opens() as opened:
            shares.append(verify.verify_share(folder, meta))
        verified.append(len(opened))
    layout = verify.join_shares(folder, meta, shares)
    assert isinstance(layout, Layout), layout
    costs = []
    for rank in range(ranks):
        checkpoint = Checkpoint(folder, meta, layout)
        held = list(rank_state(parameters, stage, rank, ranks, _empty))
        with (
            as_rank(rank, ranks),
            count_opens() as opened,
            mock.patch.object(reader, "broadcast"),  # what others read stays nan
        ):
            checkpoint.load(iter(held))
        read = [shard for owner, shard in split_replicated(held, ranks) if owner in (None, rank)]
        for name, start, values, _ in read:
            assert torch.equal(values, state[name][start : start + len(values)]), name
        total, own = (4 * sum(len(shard.values) for shard in shards) for shards in (held, read))
        costs.append(RankCost(verified[rank], len(opened), own, total - own))
    return costs


def _empty(_: str, start: int, stop: int) -> Tensor:
    return torch.full((stop - start,), torch.nan)


@contextlib.contextmanager
def count_opens() -> Iterator[list[Path]]:
    """The files that are opened inside, as often as they are, by Path.open or safetensors."""
    opened: list[Path] = []
    path_open, safe_open = Path.open, reader.safe_open

    def counted_path_open(path, *arguments, **options):
        opened.append(path)
        return path_open(path, *arguments, **options)

    def counted_safe_open(path, framework):
        opened.append(path)
        return safe_open(path, framework)

    with (
        mock.patch.object(Path, "open", counted_path_open),
        mock.patch.object(reader, "safe_open", counted_safe_open),
    ):
        yield opened


class Planned(NamedTuple):
    """The checkpoint of a model whose weights do not exist."""

    layout: Layout
    file_bytes: list[int]  # of each rank's file
    report_bytes: int  # that a rank sends to rank 0 on resume, at most
    layout_bytes: int  # that rank 0 sends to all ranks on resume


def plan_checkpoint(parameters: list[Parameter], stage: int, ranks: int) -> Planned:
    shapes = tensor_shapes(parameters)
    numbers = {name: number for number, name in enumerate(shapes)}
    reports, file_bytes = [], []
    for rank in range(ranks):
        with as_rank(rank, ranks):
            shards = list(owned_shards(rank_state(parameters, stage, rank, ranks, _no_values)))
        rows = [(numbers[s.name], s.start, s.start + len(s.values)) for s in shards]
        reports.append(np.array(rows, dtype=np.int64).reshape(-1, 3))
        values = 4 * sum(len(shard.values) for shard in shards)
        file_bytes.append(len(file_header(shards, shapes)) + values)
    layout = Layout(shapes, reports)
    largest = max(len(pickle.dumps(report)) for report in reports)
    return Planned(layout, file_bytes, largest, len(pickle.dumps(layout)))


def planned_resume(
    planned: Planned, parameters: list[Parameter], stage: int, ranks: int, rank: int
) -> RankCost:
    """What a rank would open and read of a planned checkpoint, as `Checkpoint.load` does it."""
    held = list(rank_state(parameters, stage, rank, ranks, _no_values))
    read = [shard for owner, shard in split_replicated(held, ranks) if owner in (None, rank)]
    opened = {number for shard in read for number in _files_of(planned.layout, shard)}
    total, own = (4 * sum(len(shard.values) for shard in shards) for shards in (held, read))
    verified = len(range(rank, len(planned.file_bytes), ranks))
    return RankCost(verified, len(opened), own, total - own)


def _files_of(layout: Layout, shard: Shard) -> list[int]:
    found = layout.find(shard.name, shard.start, shard.start + len(shard.values))
    return [number for _, _, number in found]


def _no_values(_: str, start: int, stop: int) -> range:
    return range(start, stop)
