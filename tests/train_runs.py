"""Run as a rank: train several runs one after the other, each in a separate folder.

python -m tests.train_runs FOLDER NAME:KEY=VALUE:KEY=VALUE,NAME:... KEY=VALUE ...

The last overrides apply to all runs.
"""

import sys

from mofore.config import PretrainConfig, compose
from mofore.train import train

if __name__ == "__main__":
    folder, runs, *overrides = sys.argv[1:]
    for run in runs.split(","):
        name, *own = run.split(":")
        train(compose(PretrainConfig, [*overrides, *own, f"run_dir='{folder}/{name}'"]))
