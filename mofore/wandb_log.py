"""Weights & Biases beside metrics.jsonl and TensorBoard: needs the extra `mofore[wandb]`.

A run folder has one run there: a resumed run continues it. Its id is in RUN/wandb.json.
"""

import importlib.util
import json
import logging
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mofore.errors import UserError
from mofore.files import write_json
from mofore.parallel.collectives import broadcast_object, get_rank

logger = logging.getLogger(__name__)


class WandbLog:
    """The run of a run folder; UserError if wandb is not installed or refuses to start it."""

    def __init__(self, project: str, run_dir: Path, config: dict[str, Any]) -> None:
        wandb = load_wandb()
        self.lost = False  # wandb has failed and takes no more numbers
        try:
            self.run = wandb.init(
                project=project,
                id=run_id(run_dir),
                name=run_dir.resolve().name,
                dir=run_dir,
                config=config,
                allow_val_change=True,  # a resume may change keys, such as workers
                resume="allow",
                settings=wandb.Settings(console="off"),  # RUN/logs has the console
            )
        except wandb.Error as error:
            raise UserError(
                f"wandb_project={project}: wandb does not start: {error} Log in with `wandb "
                "login`, set WANDB_MODE=offline, or drop wandb_project."
            ) from error
        # wandb's own step may not decrease, and a rollback repeats steps: ours is a metric.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """One step's numbers. If wandb fails, a warning: training does not depend on it."""
        self._call(self.run.log, {"step": step} | numbers)

    def close(self, failed: bool) -> None:
        """Wait until wandb has sent everything."""
        self._call(self.run.finish, int(failed))

    def _call(self, function: Callable[[Any], None], argument: Any) -> None:
        if self.lost:
            return
        try:
            function(argument)
        except Exception as error:  # of its process, which a stop signal may have ended, or network
            self.lost = True
            logger.warning(
                "wandb takes no more numbers (%s). metrics.jsonl and TensorBoard have all of them.",
                error,
            )


def start_wandb(project: str | None, run_dir: Path, config: dict[str, Any]) -> WandbLog | None:
    """Start or continue the run on rank 0, None on the others; every rank calls it.

    Raises UserError on every rank if wandb is not installed or refuses.
    """
    if project is None:
        return None
    log, fault = None, None
    if get_rank() == 0:
        try:
            log = WandbLog(project, run_dir, config)
        except UserError as error:
            fault = str(error)
    fault = broadcast_object(fault)
    if fault:
        raise UserError(fault)
    return log


def load_wandb() -> ModuleType:
    """The package wandb; UserError if it is not installed."""
    spec = importlib.util.find_spec("wandb")
    if spec is None or spec.origin is None:  # a folder that wandb has written is no package
        raise UserError(
            "wandb_project needs the package wandb: `pip install mofore[wandb]`, or drop "
            "wandb_project."
        )
    return importlib.import_module("wandb")


def run_id(run_dir: Path) -> str:
    """The id of the folder's run, made at the first call."""
    path = run_dir / "wandb.json"
    if not path.exists():
        write_json(path, {"id": uuid.uuid4().hex[:8]})
    return json.loads(path.read_text())["id"]
