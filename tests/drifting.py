"""Run as a rank: a bit of one weight of rank 1 flips between two steps, and the ranks find it."""

import sys

import torch

from mofore import train as module
from mofore.config import PretrainConfig, compose
from mofore.distributed import rank
from mofore.errors import UserError

if __name__ == "__main__":
    run, *words = sys.argv[1:]
    update, calls = module.update, []

    def flipping(engine, *rest):
        done = update(engine, *rest)
        calls.append(1)
        if len(calls) == 3 and rank() == 1:
            for parameter in engine.module.parameters():
                parameter.data.view(torch.int32).view(-1)[0] ^= 1
        return done

    module.update = flipping
    try:
        module.train(compose(PretrainConfig, [*words, f"run_dir={run}", "engine.compare_every=1", "steps=6"]))
    except UserError as found:
        print(found, flush=True)
