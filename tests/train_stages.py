"""Run under torchrun: train the same few steps at several ZeRO stages, one run folder a stage.

python -m tests.train_stages FOLDER 0,2,3+backbone.checkpoint_every=1 KEY=VALUE ...  A stage may have a key of its own.
"""

import sys

from mofore.config import PretrainConfig, compose
from mofore.train import train

if __name__ == "__main__":
    folder, stages, *overrides = sys.argv[1:]
    for stage in stages.split(","):
        zero, *own = stage.split("+")
        fixed = [*overrides, *own, f"engine.zero={zero}", f"run_dir='{folder}/zero-{stage}'"]
        train(compose(PretrainConfig, fixed))
