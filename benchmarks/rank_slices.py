"""What the engine of each rank holds of the training state, as JSON.

It checks the arithmetic of `benchmarks.simulated_ranks`: under torchrun with real ranks, or with
one rank of torch's fake process group.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.processes import run_json
from benchmarks.simulated_ranks import Parameter, rank_state
from mofore.config import PretrainConfig, compose
from mofore.parallel.collectives import all_gather_objects, get_rank, get_world_size
from mofore.parallel.engine import load_deepspeed, start_ranks
from mofore.parallel.engine_config import EngineConfig
from mofore.parallel.state import local_state
from mofore.startup import build_training_engine
from mofore.types import Shard

STAGES = range(4)
Slice = list  # [name, start, length, replicated]


def slices(shards: list[Shard]) -> list[Slice]:
    return [[name, start, len(values), shared] for name, start, values, shared in shards]


def computed_slices(parameters: list[Parameter], stage: int, rank: int, ranks: int) -> list[Slice]:
    shards = rank_state(parameters, stage, rank, ranks, lambda _, start, stop: range(start, stop))
    return slices(list(shards))


def real_slices(
    overrides: list[str], ranks: int, fake_rank: int | None = None
) -> dict[int, dict[int, list[Slice]]]:
    """By stage and rank, of the engines of `ranks` gloo ranks, or of one rank that is faked."""
    fake = [] if fake_rank is None else ["--fake", str(fake_rank), str(ranks)]
    launched = ranks if fake_rank is None else 0
    answer = run_json("benchmarks.rank_slices", *fake, *overrides, ranks=launched)
    return {
        int(stage): {int(rank): held for rank, held in by_rank.items()}
        for stage, by_rank in answer.items()
    }


@contextlib.contextmanager
def faked_ranks(rank: int, ranks: int) -> Iterator[None]:
    """This process is one rank of many that do not exist: collectives return what was in memory."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0"}
    deepspeed = load_deepspeed()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    deepspeed.init_distributed("fake", auto_mpi_discovery=False, verbose=False)
    from deepspeed.runtime.zero import partitioned_param_coordinator, stage3

    with (
        # compares numbers of the ranks
        mock.patch.object(partitioned_param_coordinator, "assert_ints_same_as_other_ranks"),
        # gathered weights are no numbers, but the step that creates the moments must be made
        mock.patch.object(stage3, "is_invalid_grad_norm", return_value=False),
    ):
        yield


def engine_slices(overrides: list[str], stage: int, device: torch.device) -> list[Slice]:
    """What this rank's engine holds."""
    videos = 2 * get_world_size()
    fixed = ["data.manifest=none", f"global_batch={videos}", f"engine.zero_stage={stage}"]
    engine = build_training_engine(compose(PretrainConfig, [*overrides, *fixed]), None, device)
    return slices(list(local_state(engine)))


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.rank_slices", description=__doc__)
    parser.add_argument("--fake", type=int, nargs=2, metavar=("RANK", "RANKS"))
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.fake:
        device = torch.device("cpu")
        with faked_ranks(*options.fake):
            held = {s: engine_slices(options.overrides, s, device) for s in STAGES}
        print(json.dumps({stage: {options.fake[0]: each} for stage, each in held.items()}))
        return 0
    device = start_ranks(EngineConfig())
    held = {s: engine_slices(options.overrides, s, device) for s in STAGES}
    of_ranks = all_gather_objects(held)
    if get_rank() == 0:
        by_stage = {s: {r: each[s] for r, each in enumerate(of_ranks)} for s in STAGES}
        print(json.dumps(by_stage))
    return 0


if __name__ == "__main__":
    sys.exit(main())
