"""What ZeRO 3 exchanges in a step, by how it calls the model: python -m benchmarks.zero3_calls

ZeRO 3 records the order of the modules in a call of the engine, and fetches weights ahead only
while the next call has the same order. Three ways are compared in turn, on the same ranks: one call
for teacher and student (MoFore's step), a call for the teacher and one for the student, and one
call with whole blocks as DeepSpeed's leaf modules. Collectives are counted in a profile of a step.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter

import torch
import torch.distributed as dist

from benchmarks.processes import run_json
from mofore.config import PretrainConfig, compose
from mofore.parallel.collectives import get_rank
from mofore.parallel.engine import backward_and_step, start_ranks
from mofore.parallel.engine_config import EngineConfig
from mofore.profiling import random_batch
from mofore.startup import build_training_engine
from mofore.step import TrainingStep, gather_keys
from mofore.types import Batch

SIZE = (
    "backbone=vit_tiny",
    "data.frames=8",
    "data.size=64",
    "data.targets=1",
    "global_batch=4",
    "data.manifest=none",
    "engine.zero_stage=3",
)
LEAVES = (
    "engine.deepspeed.zero_optimization.leaf_module.classes=[timm.models.vision_transformer.Block]"
)
ONE, TWO, LEAF = "one call", "two calls", "one call, blocks as leaves"


def count_collectives(profile: torch.profiler.profile) -> Counter[str]:
    """The collectives that gloo or NCCL ran, by name."""
    names = [event.name for event in profile.events() or []]
    return Counter(name.split(":")[1] for name in names if name.startswith(("gloo:", "nccl:")))


def two_calls(step: TrainingStep, batch: Batch) -> None:
    """The same step with a call of the engine for the teacher and one for the student."""
    targets = step.engine(batch)
    keys = gather_keys(targets.keys)
    losses = step.engine(batch, targets, keys, get_rank() * len(batch.rows))
    backward_and_step(step.engine, losses.total)


def measure(way: str, rounds: int, overrides: list[str]) -> None:
    """Run under torchrun: print the collectives of a step and its median seconds."""
    leaves = [LEAVES] if way == LEAF else []
    config = compose(PretrainConfig, [*SIZE, *leaves, *overrides])
    device = start_ranks(EngineConfig(zero_stage=3))
    step = TrainingStep(config, build_training_engine(config, None, device))
    batch = random_batch(config, config.global_batch // dist.get_world_size(), device)

    def make_step() -> None:
        two_calls(step, batch) if way == TWO else step(0, [batch])

    seconds = []
    for _ in range(rounds + 2):  # the first two record the order
        start = time.perf_counter()
        make_step()
        seconds.append(time.perf_counter() - start)
    with torch.profiler.profile() as profile:
        make_step()
    if get_rank() == 0:
        counts = count_collectives(profile)
        print(json.dumps({"counts": counts, "seconds": statistics.median(seconds[2:])}))


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.zero3_calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, default=2, help="default: 2")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps (default: 10)")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for `mofore pretrain`"
    )
    options = parser.parse_args()
    if options.way is not None:
        measure(options.way, options.rounds, options.overrides)
        return 0
    print(f"{options.ranks} ranks; median seconds of a step, and its collectives")
    for way in (ONE, TWO, LEAF):
        argv = ["--way", way, "--rounds", str(options.rounds), *options.overrides]
        result = run_json("benchmarks.zero3_calls", *argv, ranks=options.ranks)
        counts = ", ".join(f"{name} {count}" for name, count in sorted(result["counts"].items()))
        print(f"{way:26} {result['seconds']:7.3f}  {counts}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
