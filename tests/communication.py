"""Run on two ranks: what `measure_communication` sees of DeepSpeed's and our collectives.

    python -m tests.communication ZERO_STAGE

Rank 0 prints, of each rank, the seconds in collectives of three steps: an ordinary one, one that
rank 1 starts late, and a product without a collective (null).
"""

import json
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from mofore.config import PretrainConfig, compose
from mofore.parallel.collectives import all_gather_objects, get_rank, get_world_size
from mofore.parallel.engine import start_ranks
from mofore.profiling import measure_communication, random_batch
from mofore.startup import build_training_engine
from mofore.step import TrainingStep
from tests.small import SMALL

LATE = 1.0  # seconds


def main(stage: str) -> None:
    torch.set_num_threads(1)
    config = compose(
        PretrainConfig, [*SMALL, "data.manifest=none", f"engine.zero_stage={stage}", "steps=9"]
    )
    device = start_ranks(config.engine)
    training_step = TrainingStep(config, build_training_engine(config, None, device))
    micro_batch, count = config.split_batch(get_world_size())
    micro_batches = [random_batch(config, micro_batch, device) for _ in range(count)]

    def seconds_in_collectives(work: Callable[[], object]) -> float | None:
        dist.barrier()
        with measure_communication(device) as communication:
            start = time.perf_counter()
            work()
            seconds = time.perf_counter() - start
        return None if communication.fraction is None else communication.fraction * seconds

    def late_step() -> None:
        if get_rank() == 1:
            time.sleep(LATE)
        training_step(2, micro_batches)

    training_step(0, micro_batches)
    measured = [
        seconds_in_collectives(lambda: training_step(1, micro_batches)),
        seconds_in_collectives(late_step),
        seconds_in_collectives(lambda: torch.ones(200, 200) @ torch.ones(200, 200)),
    ]
    by_rank = all_gather_objects(measured)
    if get_rank() == 0:
        print(json.dumps(by_rank))


if __name__ == "__main__":
    main(sys.argv[1])
