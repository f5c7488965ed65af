"""Optimizer state per rank, by ZeRO stage and number of ranks: python -m benchmarks.zero

Theory (Rajbhandari et al. 2020, "ZeRO", section 5): each rank holds both fp32 moments of Adam at
stage 0, and 1/W of them on W ranks from stage 1 on. Counted on the optimizer's tensors.
"""

import argparse
import json
import sys

from benchmarks.processes import run_json
from mofore.config import PretrainConfig, compose
from mofore.parallel.collectives import all_gather_objects, get_rank, get_world_size
from mofore.parallel.engine import start_ranks
from mofore.parallel.state import MOMENTS
from mofore.startup import build_training_engine

SIZE = ("backbone=vit_tiny", "data.frames=4", "data.size=64", "data.targets=1", "global_batch=4")
STAGES = range(4)


def print_bytes(stage: int, overrides: list[str]) -> None:
    """Run under torchrun: print the bytes of moments on the fullest and on the emptiest rank."""
    fixed = [*SIZE, "data.manifest=none", f"engine.zero_stage={stage}"]
    config = compose(PretrainConfig, [*fixed, *overrides])
    engine = build_training_engine(config, None, start_ranks(config.engine))
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    held = sum(state[key].nbytes for state in optimizer.state.values() for key in MOMENTS)
    trained = sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in engine.module.parameters()
        if parameter.requires_grad
    )
    by_rank = all_gather_objects(held)
    if get_rank() == 0:
        counts = {"max": max(by_rank), "min": min(by_rank), "trained": trained}
        print(json.dumps({"stage": stage, "ranks": get_world_size(), **counts}))


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.zero",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as for `mofore pretrain`"
    )
    options = parser.parse_args()
    if options.stage is not None:
        print_bytes(options.stage, options.overrides)
        return 0
    print("stage  ranks  MB per rank (min, max)   theory  max / theory")
    largest = 0.0
    for stage in STAGES:
        for ranks in options.ranks:
            argv = ["--stage", str(stage), *options.overrides]
            counts = run_json("benchmarks.zero", *argv, ranks=ranks)
            theory = 8 * counts["trained"] / (ranks if stage else 1)
            largest = max(largest, abs(counts["max"] / theory - 1))
            print(
                f"{stage:5}  {ranks:5}  {counts['min'] / 1e6:10.2f} {counts['max'] / 1e6:11.2f}  "
                f"{theory / 1e6:7.2f}  {counts['max'] / theory:12.3f}"
            )
    print(f"largest deviation from theory: {100 * largest:.1f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
