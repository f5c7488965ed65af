"""`mofore resume RUN`: start the run again as it was last submitted or started."""

import logging
from pathlib import Path

from mofore.config import PretrainConfig, compose, read_config
from mofore.errors import UserError
from mofore.launch.overrides import overrides_of, split_overrides
from mofore.launch.runs import read_submissions
from mofore.launch.submit import submit
from mofore.quoting import to_override
from mofore.run_folder import RESUMABLE_KEYS
from mofore.train import main as pretrain

logger = logging.getLogger(__name__)


def resume(run: Path, changes: list[str]) -> int:
    """`changes`: overrides of the cluster, and of keys that do not change what is computed."""
    cluster_changes, changes = split_overrides(changes)
    submissions = [each for each in read_submissions(run) if each.task == "pretrain"]
    config = read_config(run / "config.yaml") if (run / "config.yaml").exists() else None
    if config is None and not submissions:
        raise UserError(f"{run} is not a run folder: it has neither config.yaml nor jobs.")
    if config:
        check_resumable(run, config, changes)
    if submissions:
        last = submissions[-1]
        logger.info("Resuming as job %s was submitted.", last.id)
        cluster = [*last.cluster_overrides, *cluster_changes]
        return submit([*last.argv, *cluster, *changes])
    assert config is not None
    return pretrain([*overrides_of(config), to_override("run_dir", str(run)), *changes])


def check_resumable(run: Path, config: PretrainConfig, changes: list[str]) -> None:
    """UserError if a change would make it another run, or is invalid."""
    allowed = [key for key in RESUMABLE_KEYS if key != "run_dir"]
    keys = [change.partition("=")[0] for change in changes]
    refused = [key for key in keys if not key.startswith(tuple(allowed))]
    if refused:
        names = ", ".join(f"{key}*" if key.endswith(".") else key for key in allowed)
        raise UserError(
            f"{refused[0]} decides what {run} computes, so it cannot change: start another run. "
            f"These may change: {names}."
        )
    compose(PretrainConfig, [*overrides_of(config), *changes])
