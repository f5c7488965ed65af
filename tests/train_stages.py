"""Run under torchrun: train the same few steps at several ZeRO stages, one run folder a stage."""

import sys

from mofore.config import PretrainConfig, compose
from mofore.train import train

if __name__ == "__main__":
    folder, stages, *overrides = sys.argv[1:]
    for stage in stages.split(","):
        train(compose(PretrainConfig, [*overrides, f"engine.zero={stage}", f"run_dir={folder}/zero-{stage}"]))
