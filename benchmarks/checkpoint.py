"""What a checkpoint costs, in time and memory: python -m benchmarks.checkpoint

Three ways to save the same state, in turn, between real steps of one run: MoFore's (the step waits
for a copy in memory; the file is written during the next steps), a plain synchronous save
(safetensors, synced and hashed), and DeepSpeed's own. Then, for each number of ranks at ZeRO 3, how
much memory a rank takes to write its shards and to read them back.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.processes import measure_memory, run_json
from benchmarks.training_step import RepeatedStep
from mofore.checkpoint.format import CheckpointConfig
from mofore.checkpoint.reader import find_latest_checkpoint
from mofore.checkpoint.saver import Saver
from mofore.config import PretrainConfig, compose
from mofore.parallel.collectives import all_gather_objects, all_reduce_max, get_rank, get_world_size
from mofore.parallel.engine import Engine, start_ranks
from mofore.parallel.state import load_state, local_state, state_shapes
from mofore.startup import build_training_engine

SIZE = (
    "backbone=vit_small",
    "data.frames=16",
    "data.size=112",
    "data.targets=1",
    "global_batch=4",
    "data.token_keep_ratio=0.25",
)


def small_config(overrides: list[str]) -> PretrainConfig:
    return compose(PretrainConfig, [*SIZE, "data.manifest=none", *overrides])


def state_bytes(engine: Engine) -> int:
    """Weights of student and teacher, and both moments, in fp32."""
    return sum(4 * torch.Size(shape).numel() for shape in state_shapes(engine).values())


@contextlib.contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Append the seconds that the block takes."""
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def time_saves(overrides: list[str], folder: Path, rounds: int) -> None:
    """Print the medians of the seconds that each way of saving blocks a step."""
    step = RepeatedStep(small_config(["engine.zero_stage=0", *overrides]))
    engine, plain, deepspeed = step.engine, folder / "plain.safetensors", folder / "deepspeed"
    saver = Saver(folder / "mofore", CheckpointConfig(keep_last=1), state_shapes(engine))
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    step()
    saver.save(0, local_state(engine), {})  # allocates the buffer
    saver.wait()
    for turn in range(1, rounds + 1):
        with timed(seconds["step"]):
            step()
        with timed(seconds["copy"]):
            saver.save(turn, local_state(engine), {})
        while saver.writing:
            with timed(seconds["step while writing"]):
                step()
        with timed(seconds["commit"]):
            saver.commit()
        with timed(seconds["synchronous"]):
            save_plain(engine, plain)
        plain.unlink()
        with timed(seconds["DeepSpeed"]):
            engine.save_checkpoint(str(deepspeed), tag=str(turn))
        shutil.rmtree(deepspeed)
    blocked = map(sum, zip(seconds.pop("copy"), seconds.pop("commit"), strict=True))
    print_save_times(state_bytes(engine), {**seconds, "MoFore": list(blocked)})


def print_save_times(size: int, seconds: dict[str, list[float]]) -> None:
    """size: of the state, in bytes."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    mofore = medians["MoFore"]
    print(
        f"state of {size / 1e6:.0f} MB, medians of {len(seconds['MoFore'])} rounds: seconds that a "
        "save blocks a step"
    )
    print(f"  {'MoFore':12} {mofore:8.3f}")
    for name, note in (("synchronous", ""), ("DeepSpeed", "  (not synced, not hashed)")):
        ratio = mofore / medians[name]
        print(f"  {name:12} {medians[name]:8.3f}   MoFore / {name}: {ratio:.3f}{note}")
    writing = medians.get("step while writing")
    during = f"; {writing:.3f} s while a file is written" if writing else ""
    print(f"  a step takes {medians['step']:.3f} s{during}")


def save_plain(engine: Engine, path: Path) -> None:
    """The state in one file, synced and hashed before training continues."""
    save_file({shard.name: shard.values for shard in local_state(engine)}, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        hashlib.file_digest(file, "sha256")


def print_memory(overrides: list[str], folder: Path) -> None:
    """Run under torchrun: peak memory of the fullest rank while it writes and reads its shards."""
    config = small_config(["engine.zero_stage=3", *overrides])
    device = start_ranks(config.engine)
    engine = build_training_engine(config, None, device)
    run_dir = folder / f"ranks-{get_world_size()}"
    with measure_memory() as writing:
        saver = Saver(run_dir, CheckpointConfig(), state_shapes(engine))
        saver.save(1, local_state(engine), {})
        saver.close()
    del saver
    with measure_memory() as reading:
        checkpoint, _ = find_latest_checkpoint(run_dir)
        assert checkpoint
        load_state(engine, checkpoint.load, 1)
    write, read = all_reduce_max([writing.peak, reading.peak], device)
    if get_rank() == 0:
        print(json.dumps({"state": state_bytes(engine), "write": write, "read": read}))
    all_gather_objects(None)  # no rank leaves before the others have read


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="saves of each way (default: 5)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the temporary folder")
    parser.add_argument("--rank-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for `mofore pretrain`"
    )
    options = parser.parse_args()
    if options.rank_memory:
        print_memory(options.overrides, options.out)
        return 0
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        time_saves(options.overrides, Path(folder), options.rounds)
        print("ranks  state MB  shards of a rank  peak to write  peak to read  (MB, ZeRO 3)")
        for ranks in options.ranks:
            argv = ["--rank-memory", "--out", folder, *options.overrides]
            counts = run_json("benchmarks.checkpoint", *argv, ranks=ranks)
            state, write, read = (counts[key] / 1e6 for key in ("state", "write", "read"))
            print(f"{ranks:5}  {state:8.1f}  {state / ranks:16.1f}  {write:13.1f}  {read:12.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
