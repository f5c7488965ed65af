"""What a job runs: words only, so that what is pickled at submission is small and never stale."""

from dataclasses import dataclass

import submitit


@dataclass
class PretrainJob:
    """One rank of a pretraining run; returns its exit code."""

    overrides: list[str]

    def __call__(self) -> int:
        submitit.helpers.TorchDistributedEnvironment().export(overwrite=True)
        from mofore.train import main

        return main(self.overrides)
