"""Where checkpoints lie and what describes them.

Without torch, so that looking at many runs is quick.

RUN/checkpoints/step-N/checkpoint.json      format, step, shapes, files with sizes and digests, its
                                            own digest
RUN/checkpoints/step-N/rank-R.safetensors   what rank R wrote of weights, moments and teacher (fp32)
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mofore.errors import UserError
from mofore.settings import setting

FORMAT = 3
META_NAME = "checkpoint.json"


@dataclass
class CheckpointConfig:
    every: int = setting(1000, "Steps between two checkpoints.")
    keep_last: int = setting(2, "Newest checkpoints to keep; older ones are removed.")
    keep_every: int | None = setting(
        None, "Also keep, for good, the checkpoints of steps that this divides; null keeps none."
    )
    upload: str | None = setting(
        None, "fsspec URL of a folder that each checkpoint is copied to, in the background."
    )

    def __post_init__(self) -> None:
        if min(self.every, self.keep_last) < 1 or (
            self.keep_every is not None and self.keep_every < 1
        ):
            raise UserError(
                f"checkpoint.every={self.every}, checkpoint.keep_last={self.keep_last} and "
                f"checkpoint.keep_every={self.keep_every} must be at least 1."
            )


def checkpoints_dir(run_dir: Path) -> Path:
    return run_dir / "checkpoints"


def list_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every committed checkpoint, oldest first.

    Folders with other names are ignored.
    """
    folders = checkpoints_dir(run_dir).glob("step-*")
    steps = [(path.name.removeprefix("step-"), path) for path in folders]
    return sorted((int(step), path) for step, path in steps if step.isdecimal())


def meta_digest(meta: dict[str, Any]) -> str:
    """SHA-256 (hex) of everything in checkpoint.json except the digest itself."""
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
