"""Reading checkpoints: a run's state by parameter name, at any world size and ZeRO stage.

    find_latest_checkpoint   the newest folder with valid digests; ranks share the files
    Checkpoint.read          any slice of any tensor, so that a rank reads only what it holds

Weights, moments and teacher are fp32; everything else in a run is a function of the step. Nothing
is unpickled.
"""

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mofore.checkpoint.format import FORMAT, META_NAME, list_checkpoints, meta_digest
from mofore.errors import UserError
from mofore.parallel.collectives import (
    all_gather_objects,
    broadcast_object,
    get_rank,
    get_world_size,
)

SLICE_KEY = re.compile(r"(.*)\[(\d+):(\d+)\]")  # NAME[START:STOP], a slice of a flattened tensor


class Checkpoint:
    """One committed checkpoint, open for reading.

    Its files stay open, so that removing it does not hurt a reader.

    Names: `weights/NAME` for every parameter of Pretraining (student, teacher, forecaster),
    `exp_avg/NAME` and `exp_avg_sq/NAME` for every trained one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / META_NAME).read_text())
        self.shapes: dict[str, list[int]] = self.meta["shapes"]
        self.slices: dict[str, list[tuple[int, int, Any, str]]] = {name: [] for name in self.shapes}
        for name in self.meta["files"]:
            file = safe_open(folder / name, "pt")
            keys = file.keys()
            for key in keys:
                tensor, start, stop = _parse_key(key, self.shapes)
                self.slices[tensor].append((start, stop, file, key))

    @property
    def step(self) -> int:
        return self.meta["step"]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the digests of the files; depends on the number of ranks too."""
        joined = "".join(facts["sha256"] for _, facts in sorted(self.meta["files"].items()))
        return hashlib.sha256(joined.encode()).hexdigest()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements start..stop of the flattened tensor: f32 [stop - start].

        Nothing else is read, except that a tensor that one rank wrote whole is read whole.
        """
        size = math.prod(self.shapes[name])
        stop = size if stop is None else stop
        values = torch.empty(stop - start)
        for first, last, file, key in self.slices[name]:
            low, high = max(start, first), min(stop, last)
            if low < high:
                whole = last - first == size
                part = file.get_tensor(key).view(-1) if whole else file.get_slice(key)
                values[low - start : high - start] = part[low - first : high - first]
        return values

    def tensor(self, name: str) -> Tensor:
        """One tensor in its own shape, f32."""
        return self.read(name).view(self.shapes[name])

    def check_shapes(self, shapes: dict[str, list[int]]) -> None:
        """Raise UserError if the checkpoint belongs to a model with other shapes."""
        for name, shape in shapes.items():
            if name not in self.shapes:
                raise UserError(f"{self.folder} has no {name}: it belongs to another model.")
            if self.shapes[name] != shape:
                raise UserError(
                    f"{self.folder}: {name} has shape {self.shapes[name]}, this configuration "
                    f"makes it {shape}. Resume with the run's own config.yaml, or choose another "
                    "run_dir."
                )

    def load_weights(self, module: nn.Module) -> None:
        """Copy all weights into a module on the CPU that no engine wraps."""
        parameters = list(module.named_parameters())
        self.check_shapes({f"weights/{name}": list(p.shape) for name, p in parameters})
        for name, parameter in parameters:
            parameter.data.copy_(self.tensor(f"weights/{name}"))


def find_latest_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of a run, and a sentence for each newer, damaged one.

    A collective: rank 0 lists, each rank verifies its share of the bytes, all ranks agree. Raises
    UserError if there are checkpoints but all are damaged, or if the newest undamaged one has
    another format.
    """
    faults: list[str] = []
    for _, folder in reversed(broadcast_object(list_checkpoints(run_dir))):
        found = [fault for fault in all_gather_objects(_find_fault(folder)) if fault]
        if not found:
            return Checkpoint(folder), faults
        faults.append(found[0])
    if faults:
        raise UserError(
            f"All checkpoints of {run_dir} are damaged: {' '.join(faults)} Restore one from a "
            f"copy, or remove {run_dir / 'checkpoints'} to start from step 0."
        )
    return None, faults


def rename_damaged(run_dir: Path, newest: int) -> None:
    """Rename the checkpoints after step `newest` to step-N.damaged, so that none is found."""
    for step, folder in list_checkpoints(run_dir):
        if step > newest:
            os.replace(folder, _unused_name(folder.with_name(f"{folder.name}.damaged")))


def teacher_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The teacher's weights by the encoder's parameter names, to evaluate and export."""
    prefix = "weights/teacher."
    names = [name for name in checkpoint.shapes if name.startswith(prefix)]
    return {name.removeprefix(prefix): checkpoint.tensor(name) for name in names}


def _unused_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{i}") if i else path for i in range(10**6))
    return next(name for name in names if not name.exists())


def _find_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as far as this rank's share of its files shows."""
    path = folder / META_NAME
    try:
        meta = json.loads(path.read_text())
        version, valid = meta["format"], meta["digest"] == meta_digest(meta)
    except FileNotFoundError:
        return f"{path} is missing."
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{path} is damaged: {type(error).__name__} {error}."
    if version != FORMAT:  # another version of MoFore wrote it: it is not damaged
        raise UserError(
            f"{folder} has checkpoint format {version}, this MoFore reads format {FORMAT}: resume "
            "with the version that wrote it, or choose another run_dir."
        )
    if not valid:
        return f"{path} is damaged: its digest differs."
    for name, facts in sorted(meta["files"].items())[get_rank() :: get_world_size()]:
        fault = _find_file_fault(folder / name, facts)
        if fault:
            return fault
    return None


def _find_file_fault(path: Path, facts: dict[str, Any]) -> str | None:
    if not path.is_file():
        return f"{path} is missing."
    if path.stat().st_size != facts["bytes"]:
        return f"{path} is damaged: {path.stat().st_size} bytes of {facts['bytes']}."
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
            return f"{path} is damaged: its digest differs."
    return None


def _parse_key(key: str, shapes: dict[str, list[int]]) -> tuple[str, int, int]:
    """A safetensors key -> (tensor name, first element, last element + 1)."""
    match = SLICE_KEY.fullmatch(key)
    if match:
        return match[1], int(match[2]), int(match[3])
    return key, 0, math.prod(shapes[key])
