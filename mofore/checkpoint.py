"""checkpoints/step-N: the whole state of a run by parameter name, readable at any world size and ZeRO stage.

    find     the newest committed folder whose digests hold, every rank reading its share of the bytes
    read     any run of any tensor, so that a rank loads what it holds

Weights, moments and teacher are fp32; all else of a run is a function of the step. Nothing is unpickled.
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

from mofore.commit import FORMAT, META, digest_of
from mofore.distributed import from_rank_0, gather_objects, rank, world
from mofore.errors import UserError
from mofore.listing import committed


class Checkpoint:
    """One committed checkpoint, opened for reading. Its files stay open, so removing it does no harm to a reader.

    Names: `weights/NAME` for every parameter of Pretraining (student, teacher, forecaster),
    `exp_avg/NAME` and `exp_avg_sq/NAME` for every trained one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / META).read_text())
        self.shapes: dict[str, list[int]] = self.meta["shapes"]
        self.runs: dict[str, list[tuple[int, int, Any, str]]] = {name: [] for name in self.shapes}
        for name in self.meta["files"]:
            file = safe_open(folder / name, "pt")
            keys = file.keys()
            for key in keys:
                tensor, start, stop = _parse_key(key, self.shapes)
                self.runs[tensor].append((start, stop, file, key))

    @property
    def step(self) -> int:
        return self.meta["step"]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the digests of the files: names the state, as so many ranks wrote it."""
        joined = "".join(facts["sha256"] for _, facts in sorted(self.meta["files"].items()))
        return hashlib.sha256(joined.encode()).hexdigest()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """The run start..stop of the flattened tensor, f32 [stop - start]. No more is read, but for a tensor that one
        rank wrote whole.
        """
        size = math.prod(self.shapes[name])
        stop = size if stop is None else stop
        values = torch.empty(stop - start)
        for first, last, file, key in self.runs[name]:
            low, high = max(start, first), min(stop, last)
            if low < high:
                run = file.get_tensor(key).view(-1) if last - first == size else file.get_slice(key)
                values[low - start : high - start] = run[low - first : high - first]
        return values

    def tensor(self, name: str) -> Tensor:
        """A whole tensor in its shape."""
        return self.read(name).view(self.shapes[name])

    def check_fits(self, shapes: dict[str, list[int]]) -> None:
        """UserError where the checkpoint is of another model than the one with these shapes."""
        for name, shape in shapes.items():
            if name not in self.shapes:
                raise UserError(f"{self.folder} holds no {name}: it is a checkpoint of another model.")
            if self.shapes[name] != shape:
                raise UserError(
                    f"{self.folder}: {name} has shape {self.shapes[name]}, this configuration makes it {shape}. "
                    "Resume with the run's own config.yaml, or choose another run_dir."
                )

    def load_weights(self, module: nn.Module) -> None:
        """Copy all weights into a module on the CPU that no engine has taken."""
        self.check_fits({f"weights/{name}": list(p.shape) for name, p in module.named_parameters()})
        for name, parameter in module.named_parameters():
            parameter.data.copy_(self.tensor(f"weights/{name}"))


def find_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint of a run, and of each newer one that is damaged, a sentence that says how.

    A collective where there are ranks: rank 0 lists, each reads its share of the bytes, all agree. Raises
    UserError where there are checkpoints and none is whole, or the newest whole one has another format.
    """
    faults: list[str] = []
    for _, folder in reversed(from_rank_0(committed(run_dir))):
        found = [fault for fault in gather_objects(_fault(folder)) if fault]
        if not found:
            return Checkpoint(folder), faults
        faults.append(found[0])
    if faults:
        raise UserError(
            f"no checkpoint of {run_dir} is whole: {' '.join(faults)} Put a copy of one back, or remove "
            f"{run_dir / 'checkpoints'} to start from step 0."
        )
    return None, faults


def set_aside(run_dir: Path, newest: int) -> None:
    """Rename the damaged checkpoints after step `newest`, so that they are neither found nor counted again."""
    for step, folder in committed(run_dir):
        if step > newest:
            os.replace(folder, _unused(folder.with_name(f"{folder.name}.damaged")))


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{i}") if i else path for i in range(10**6))
    return next(name for name in names if not name.exists())


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as far as this rank's share of its files shows."""
    try:
        meta = json.loads((folder / META).read_text())
        version, whole = meta["format"], meta["digest"] == digest_of(meta)
    except FileNotFoundError:
        return f"{folder / META} is missing."
    except (OSError, ValueError, KeyError, TypeError) as reason:
        return f"{folder / META} is damaged: {type(reason).__name__} {reason}."
    if version != FORMAT:  # a matter of versions, not of damage
        raise UserError(
            f"{folder} has checkpoint format {version}, this MoFore reads {FORMAT}: go on with the "
            "version that wrote it, or choose another run_dir."
        )
    if not whole:
        return f"{folder / META} is damaged: its digest differs."
    for name, facts in sorted(meta["files"].items())[rank() :: world()]:
        path = folder / name
        if not path.is_file():
            return f"{path} is missing."
        if path.stat().st_size != facts["bytes"]:
            return f"{path} is damaged: {path.stat().st_size} bytes of {facts['bytes']}."
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                return f"{path} is damaged: its digest differs."
    return None


RUN = re.compile(r"(.*)\[(\d+):(\d+)\]")


def _parse_key(key: str, shapes: dict[str, list[int]]) -> tuple[str, int, int]:
    match = RUN.fullmatch(key)
    if match:
        return match[1], int(match[2]), int(match[3])
    return key, 0, math.prod(shapes[key])


def teacher_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The teacher's weights by the encoder's own names: what is evaluated and exported."""
    prefix = "weights/teacher."
    names = [name for name in checkpoint.shapes if name.startswith(prefix)]
    return {name.removeprefix(prefix): checkpoint.tensor(name) for name in names}
