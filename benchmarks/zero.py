"""Bytes of optimizer state a rank holds, for each ZeRO stage and number of ranks: python -m benchmarks.zero

Beside what theory says (Rajbhandari et al. 2020, "ZeRO", section 5): both moments of fp32 Adam whole at stage 0,
and 1/W of them on each of W ranks from stage 1 on. Counted on the tensors that the optimizer holds, after a step.
"""

import argparse
import json
import sys

from benchmarks.processes import as_user_error
from mofore.config import PretrainConfig, compose
from mofore.parallel.collectives import all_gather_objects, get_rank, get_world_size
from mofore.parallel.engine import MOMENTS, start_ranks
from mofore.resume import build

SIZE = ("backbone=vit_tiny", "data.frames=4", "data.size=64", "data.targets=1", "global_batch=4")


def measure(zero: int, words: list[str]) -> None:
    """Run under torchrun: print the bytes of this stage, largest and smallest rank."""
    config = compose(
        PretrainConfig, [*SIZE, "data.manifest=none", f"engine.zero_stage={zero}", *words]
    )
    engine = build(config, None, start_ranks(600))
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    held = sum(state[key].nbytes for state in inner.state.values() for key in MOMENTS)
    trained = sum(
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in engine.module.parameters()
        if parameter.requires_grad
    )
    all_held = all_gather_objects(held)
    if get_rank() == 0:
        print(
            json.dumps(
                {
                    "zero": zero,
                    "ranks": get_world_size(),
                    "most": max(all_held),
                    "least": min(all_held),
                    "trained": trained,
                }
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.zero",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--stage", type=int, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help="as for `mofore pretrain`")
    options = parser.parse_args()
    if options.stage is not None:
        measure(options.stage, options.words)
        return 0
    print("stage  ranks  MB a rank (least, most)   theory    most / theory")
    worst = 0.0
    for zero in range(4):
        for ranks in options.ranks:
            facts = as_user_error(
                "benchmarks.zero", "--stage", str(zero), *options.words, ranks=ranks
            )
            theory = 8 * facts["trained"] / (ranks if zero else 1)
            worst = max(worst, abs(facts["most"] / theory - 1))
            print(
                f"{zero:5}  {ranks:5}  {facts['least'] / 1e6:10.2f} {facts['most'] / 1e6:10.2f}  {theory / 1e6:9.2f}"
                f"  {facts['most'] / theory:9.3f}"
            )
    print(f"farthest from theory: {100 * worst:.1f}%")
    return 0


if __name__ == "__main__":
    sys.exit(main())
