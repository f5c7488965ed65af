"""Reading checkpoints: a run's state by parameter name, at any world size and ZeRO stage.

    find_latest_checkpoint   the newest folder with valid digests; ranks share the files
    Checkpoint.read          any slice of any tensor, so that a rank reads only what it holds
    Checkpoint.load          all that a rank holds; ranks share the reading of what all of them hold

Weights, moments and teacher are fp32; everything else in a run is a function of the step. Nothing
is unpickled.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mofore.checkpoint.format import FORMAT, META_NAME, list_checkpoints
from mofore.checkpoint.layout import Layout, read_slices, slice_key
from mofore.checkpoint.verify import THREADS, read_meta, verify
from mofore.checkpoint.writer import split_replicated
from mofore.errors import UserError
from mofore.parallel.collectives import broadcast, broadcast_object, get_rank, get_world_size
from mofore.types import Shard


class Checkpoint:
    """One committed checkpoint. A file is opened when it is first read from.

    It then stays open, so that removing the checkpoint does not hurt the reader.

    Names: `weights/NAME` for every parameter of Pretraining (student, teacher, forecaster),
    `exp_avg/NAME` and `exp_avg_sq/NAME` for every trained one.
    """

    def __init__(
        self, folder: Path, meta: dict[str, Any] | None = None, layout: Layout | None = None
    ) -> None:
        """meta, layout: what is known of it already; by default both are read, not verified."""
        self.folder = folder
        self.meta: dict[str, Any] = meta or json.loads((folder / META_NAME).read_text())
        self.shapes: dict[str, list[int]] = self.meta["shapes"]
        self.file_names = sorted(self.meta["files"])
        self.layout = layout or self._read_layout()
        self.files: dict[int, Any] = {}  # the open ones, by their number in file_names

    def _read_layout(self) -> Layout:
        slices = []
        for name in self.file_names:
            with (self.folder / name).open("rb") as file:
                slices.append(read_slices(file, self.shapes))
        return Layout(self.shapes, slices)

    @property
    def step(self) -> int:
        return self.meta["step"]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the digests of the files; depends on the number of ranks too."""
        joined = "".join(facts["sha256"] for _, facts in sorted(self.meta["files"].items()))
        return hashlib.sha256(joined.encode()).hexdigest()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements start..stop of the flattened tensor, and nothing else: f32 [stop - start]."""
        size = math.prod(self.shapes[name])
        stop = size if stop is None else stop
        values = torch.empty(stop - start)
        for first, last, number in self.layout.find(name, start, stop):
            low, high = max(start, first), min(stop, last)
            file, key = self._open(number), slice_key(name, first, last, size)
            part = file.get_tensor(key).view(-1) if key == name else file.get_slice(key)
            values[low - start : high - start] = part[low - first : high - first]
        return values

    def open_files(self, names: Iterable[str]) -> None:
        """Open, in parallel, the files that have these tensors: they can be read from then on."""
        found = {
            number
            for name in names
            for _, _, number in self.layout.find(name, 0, math.prod(self.shapes[name]))
        }
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._open, sorted(found)))

    def _open(self, number: int) -> Any:
        if number not in self.files:
            path = self.folder / self.file_names[number]
            try:
                self.files[number] = safe_open(path, "pt")
            except FileNotFoundError:
                raise UserError(
                    f"{path} was removed while the checkpoint was read: a newer one has replaced "
                    "it. Run the command again."
                ) from None
        return self.files[number]

    @torch.no_grad()
    def load(self, shards: Iterable[Shard]) -> None:
        """Fill the values of all that this rank holds; a collective.

        What every rank holds is read once: each rank reads its part of it, as it would write it,
        and sends it to the others.
        """
        parts = list(split_replicated(list(shards), get_world_size()))
        for rank, shard in parts:
            if rank in (None, get_rank()):
                stop = shard.start + len(shard.values)
                shard.values.copy_(self.read(shard.name, shard.start, stop))
        for rank, shard in parts:
            if rank is not None:
                broadcast(shard.values, rank)

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
        shapes = {f"weights/{name}": list(p.shape) for name, p in parameters}
        self.check_shapes(shapes)
        self.open_files(shapes)
        for name, parameter in parameters:
            parameter.data.copy_(self.tensor(f"weights/{name}"))


def find_latest_checkpoint(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of a run, and a sentence for each newer, damaged one.

    A collective: rank 0 lists and reads checkpoint.json, each rank verifies its share of the files,
    all ranks agree. Raises UserError if there are checkpoints but all are damaged, or if the newest
    undamaged one has another format.
    """
    faults: list[str] = []
    is_first = get_rank() == 0
    for _, folder in reversed(broadcast_object(list_checkpoints(run_dir) if is_first else [])):
        meta = broadcast_object(read_meta(folder) if is_first else "")
        if isinstance(meta, str):
            faults.append(meta)
            continue
        if meta["format"] != FORMAT:  # another version of MoFore wrote it
            raise UserError(
                f"{folder} has checkpoint format {meta['format']}, this MoFore reads format "
                f"{FORMAT}: resume with the version that wrote it, or choose another run_dir."
            )
        layout = verify(folder, meta)
        if isinstance(layout, Layout):
            return Checkpoint(folder, meta, layout), faults
        faults.append(layout)
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
    checkpoint.open_files(names)
    return {name.removeprefix(prefix): checkpoint.tensor(name) for name in names}


def _unused_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}-{i}") if i else path for i in range(10**6))
    return next(name for name in names if not name.exists())
