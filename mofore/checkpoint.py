"""checkpoints/step-N: the whole state of a run by parameter name, readable at any world size and ZeRO stage.

    save     every rank gathers tensor by tensor and keeps its share -> rank-R.safetensors under a temporary
             name -> rank 0 writes checkpoint.json with their sizes and digests -> one rename commits
    find     the newest committed folder, by listing
    load     weights before the engine is built (it shards what it is given), moments after

Weights, moments and teacher are fp32; all else of a run is a function of the step. Nothing is unpickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mofore.distributed import rank, world
from mofore.errors import UserError

FORMAT = 1
META = "checkpoint.json"


@dataclass
class CheckpointConfig:
    every: int = 1000  # steps between two checkpoints
    keep_last: int = 2  # older ones are removed

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep_last < 1:
            raise UserError(
                f"checkpoint.every={self.every} and checkpoint.keep_last={self.keep_last} must be at least 1."
            )


class Checkpoint:
    """One committed checkpoint, opened for reading tensor by tensor.

    Names: `weights/NAME` for every parameter of Pretraining (student, teacher, forecaster),
    `exp_avg/NAME` and `exp_avg_sq/NAME` for every trained one.
    """

    def __init__(self, folder: Path, manifest_digest: str | None = None) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / META).read_text())
        if self.meta["format"] != FORMAT:
            raise UserError(
                f"{folder} has checkpoint format {self.meta['format']}, this MoFore reads {FORMAT}."
            )
        if manifest_digest and self.meta["manifest_digest"] != manifest_digest:
            raise UserError(
                f"{folder} was trained on another manifest (digest {self.meta['manifest_digest'][:12]}, "
                f"now {manifest_digest[:12]}): give data.manifest of that run, or another run_dir."
            )
        self.files: dict[str, Path] = {}
        for name, facts in self.meta["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != facts["bytes"]:
                raise UserError(
                    f"{path} is damaged: remove the folder {folder} to go on from the one before it."
                )
            with safe_open(path, "pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    @property
    def step(self) -> int:
        return self.meta["step"]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the digests of the files: names the state."""
        joined = "".join(facts["sha256"] for _, facts in sorted(self.meta["files"].items()))
        return hashlib.sha256(joined.encode()).hexdigest()

    def read(self, name: str) -> Tensor:
        """A whole tensor. UserError where the checkpoint has none of this name."""
        if name not in self.files:
            raise UserError(f"{self.folder} holds no {name}: it is a checkpoint of another model.")
        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)

    def load_weights(self, module: nn.Module) -> None:
        """Copy all weights into a module of the same shapes, before an engine takes it."""
        for name, parameter in module.named_parameters():
            value = self.read(f"weights/{name}")
            if value.shape != parameter.shape:
                raise UserError(
                    f"{self.folder}: {name} has shape {list(value.shape)}, this configuration makes it "
                    f"{list(parameter.shape)}. Resume with the run's own config.yaml, or choose another run_dir."
                )
            parameter.data.copy_(value)


def find_checkpoint(run_dir: Path) -> Path | None:
    """The newest committed checkpoint of a run."""
    return max(_committed(run_dir), default=(0, None))[1]


def _committed(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every whole checkpoint; a folder of any other name is somebody's own copy."""
    folders = [path for path in (run_dir / "checkpoints").glob("step-*") if (path / META).is_file()]
    steps = [(path.name.removeprefix("step-"), path) for path in folders]
    return [(int(step), path) for step, path in steps if step.isdecimal()]


def save_checkpoint(
    run_dir: Path, step: int, tensors: Iterator[tuple[str, Callable[[], Tensor]]], meta: dict, keep_last: int
) -> Path:
    """Commit a checkpoint; every rank calls it. `tensors` gives (name, gather): gather is a collective.

    Each rank keeps every world-th tensor on the CPU, so the state is written by all ranks side by side.
    """
    final = run_dir / "checkpoints" / f"step-{step}"
    draft = final.with_name(f".step-{step}.writing")
    if rank() == 0:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    mine = {}
    for i, (name, gather) in enumerate(tensors):
        tensor = gather()
        if i % world() == rank():
            mine[name] = tensor.detach().cpu().clone()
    _barrier()
    path = draft / f"rank-{rank():05d}.safetensors"
    save_file(mine, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = _collect({path.name: {"bytes": path.stat().st_size, "sha256": digest}})
    if rank() == 0:
        about = {"format": FORMAT, "step": step, "world": world(), **meta, "files": facts}
        (draft / META).write_text(json.dumps(about, indent=1))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(draft, final)
        _prune(run_dir, keep_last)
    _barrier()
    return final


def _prune(run_dir: Path, keep_last: int) -> None:
    """Remove all but the newest; a folder loses its name first, so that a reader never finds half of one."""
    for _, path in sorted(_committed(run_dir))[:-keep_last]:
        gone = path.with_name(f".{path.name}.removing")
        os.replace(path, gone)
        shutil.rmtree(gone)


def _barrier() -> None:
    if world() > 1:
        dist.barrier()


def _collect(mine: dict) -> dict:
    """The dictionaries of all ranks as one."""
    if world() == 1:
        return mine
    parts: list[dict] = [{} for _ in range(world())]
    dist.all_gather_object(parts, mine)
    return {name: facts for part in parts for name, facts in part.items()}


def teacher_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The teacher's weights by the encoder's own names: what is evaluated and exported."""
    prefix = "weights/teacher."
    return {
        name.removeprefix(prefix): checkpoint.read(name)
        for name in checkpoint.files
        if name.startswith(prefix)
    }
