"""What a checkpoint costs a step, and a rank's memory: python -m benchmarks.checkpoint

Three ways to save the same state, in turn, between real steps of the same run: ours (the step waits for a copy in
memory, the rest is written behind the steps that follow), a plain synchronous save (the library's writer, synced
and digested), and DeepSpeed's own. Then, for each number of ranks at ZeRO 3, how much memory a rank takes to
write its share and to read it back, beside the whole state.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.processes import as_user_error, peak_of
from mofore.bad_updates import BadUpdatePolicy
from mofore.checkpoint.reader import find_latest_checkpoint
from mofore.checkpoint.saver import Saver
from mofore.checkpoint.writer import CheckpointConfig
from mofore.config import PretrainConfig, compose
from mofore.parallel.collectives import all_gather_objects, all_reduce_max, get_rank, get_world_size
from mofore.parallel.engine import load_state_into, local_state, start_ranks, state_shapes
from mofore.resume import build, empty_batch
from mofore.train import update

SIZE = (
    "backbone=vit_small",
    "data.frames=16",
    "data.size=112",
    "data.targets=1",
    "global_batch=4",
    "data.token_keep_ratio=0.25",
)


def config_of(words: list[str]) -> PretrainConfig:
    return compose(PretrainConfig, [*SIZE, "data.manifest=none", *words])


def saves(words: list[str], folder: Path, rounds: int) -> None:
    """Blocked seconds of each way, in turn, `rounds` times."""
    config = config_of(["engine.zero_stage=0", *words])
    device = start_ranks(600)
    engine = build(config, None, device)
    shapes = state_shapes(engine)
    size = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    batch, guard = (
        empty_batch(config, config.global_batch, device),
        BadUpdatePolicy(config.bad_updates),
    )
    saver = Saver(folder / "ours", CheckpointConfig(keep_last=1), shapes)
    took: dict[str, list[float]] = {
        "ours": [],
        "plain": [],
        "deepspeed": [],
        "step": [],
        "step while written": [],
    }

    def step() -> float:
        began = time.perf_counter()
        update(engine, [batch], guard)
        return time.perf_counter() - began

    step()
    saver.save(0, local_state(engine), {})  # the buffer is made once
    saver.wait()
    for turn in range(1, rounds + 1):
        took["step"].append(step())

        began = time.perf_counter()
        saver.save(turn, local_state(engine), {})
        took["ours"].append(time.perf_counter() - began)
        while saver.writing:
            took["step while written"].append(step())
        began = time.perf_counter()
        saver.settle()
        took["ours"][-1] += time.perf_counter() - began

        began = time.perf_counter()
        plain = folder / f"plain-{turn}.safetensors"
        save_file({piece.name: piece.values for piece in local_state(engine)}, plain)
        with plain.open("rb+") as file:
            os.fsync(file.fileno())
            hashlib.file_digest(file, "sha256")
        took["plain"].append(time.perf_counter() - began)
        plain.unlink()

        began = time.perf_counter()
        engine.save_checkpoint(str(folder / "deepspeed"), tag=str(turn))
        took["deepspeed"].append(time.perf_counter() - began)
        shutil.rmtree(folder / "deepspeed")
    middle = {way: statistics.median(seconds) for way, seconds in took.items()}
    print(
        f"state of {size / 1e6:.0f} MB, {rounds} rounds, medians; seconds that a step is blocked by a save"
    )
    print(f"  ours                 {middle['ours']:8.3f}")
    print(
        f"  plain synchronous    {middle['plain']:8.3f}   ours / plain     {middle['ours'] / middle['plain']:.3f}"
    )
    print(
        f"  DeepSpeed's own      {middle['deepspeed']:8.3f}   ours / DeepSpeed {middle['ours'] / middle['deepspeed']:.3f}"
        "  (not synced, no digest, no rename)"
    )
    print(
        f"  a step takes {middle['step']:.3f} s, and {middle['step while written']:.3f} s while a file is written"
    )


def shares(words: list[str], folder: Path) -> None:
    """Run under torchrun: memory of this rank while it writes its share, and while it reads it."""
    config = config_of(["engine.zero_stage=3", *words])
    device = start_ranks(600)
    engine = build(config, None, device)
    shapes = state_shapes(engine)
    size = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    with peak_of() as writing:
        saver = Saver(folder / f"ranks-{get_world_size()}", CheckpointConfig(), shapes)
        saver.save(1, local_state(engine), {})
        saver.close()
    del saver
    with peak_of() as reading:
        newest, _ = find_latest_checkpoint(folder / f"ranks-{get_world_size()}")
        assert newest
        load_state_into(engine, newest.read, 1)
    peaks = all_reduce_max([writing.bytes, reading.bytes], device)
    if get_rank() == 0:
        files = sum(path.stat().st_size for path in newest.folder.glob("*.safetensors"))
        print(
            json.dumps(
                {
                    "ranks": get_world_size(),
                    "state": size,
                    "files": files,
                    "write": peaks[0],
                    "read": peaks[1],
                }
            )
        )
    all_gather_objects(None)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--folder", type=Path, help="where to write (default: the temporary folder)"
    )
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as for `mofore pretrain`")
    options = parser.parse_args()
    if options.share:
        shares(options.words, options.folder)
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        saves(options.words, Path(folder), options.rounds)
        print(
            "ranks  state MB  a rank's share  peak to write  peak to read   (a rank at ZeRO 3, MB)"
        )
        for ranks in options.ranks:
            facts = as_user_error(
                "benchmarks.checkpoint", "--share", "--folder", folder, *options.words, ranks=ranks
            )
            share = facts["state"] / ranks
            print(
                f"{ranks:5}  {facts['state'] / 1e6:8.1f}  {share / 1e6:14.1f}  {facts['write'] / 1e6:13.1f}  "
                f"{facts['read'] / 1e6:12.1f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
