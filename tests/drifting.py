"""Run as a rank: a bit of one weight of rank 1 flips between two steps, and the ranks find it."""

import sys

import torch

from mofore import train
from mofore.config import PretrainConfig, compose
from mofore.errors import UserError
from mofore.parallel.collectives import get_rank
from mofore.step import TrainingStep

if __name__ == "__main__":
    run, *overrides = sys.argv[1:]
    make_step, calls = TrainingStep.__call__, []

    def flipping(self, *rest):
        done = make_step(self, *rest)
        calls.append(1)
        if len(calls) == 3 and get_rank() == 1:
            for parameter in self.engine.module.parameters():
                parameter.data.view(torch.int32).view(-1)[0] ^= 1
        return done

    TrainingStep.__call__ = flipping
    try:
        train.train(
            compose(
                PretrainConfig,
                [*overrides, f"run_dir={run}", "engine.check_ranks_every=1", "steps=6"],
            )
        )
    except UserError as found:
        print(found, flush=True)
