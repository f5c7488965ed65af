"""checkpoints/step-N: the whole state of a run by parameter name, readable at any world size and ZeRO stage.

    write    each rank writes the runs of tensors that are its share -> rank-R.safetensors, with size and digest
    commit   rank 0 adds checkpoint.json, which names files, digests and shapes; one rename gives the folder its name
    find     the newest committed folder whose digests hold, every rank reading its share of the bytes
    read     any run of any tensor, so that a rank loads what it holds and no more

Weights, moments and teacher are fp32; all else of a run is a function of the step. Nothing is unpickled.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mofore.distributed import gather_objects, rank, world
from mofore.errors import UserError
from mofore.types import Piece

FORMAT = 2
META = "checkpoint.json"
SLAB = 2**24  # bytes written and digested at once


@dataclass
class CheckpointConfig:
    every: int = 1000  # steps between two checkpoints
    keep_last: int = 2  # the newest to keep; older ones are removed
    keep_every: int | None = None  # and those of steps that this divides, for good
    upload: str | None = (
        None  # fsspec URL of a folder that gets a copy of every checkpoint kept, behind the run
    )

    def __post_init__(self) -> None:
        if min(self.every, self.keep_last) < 1 or (self.keep_every is not None and self.keep_every < 1):
            raise UserError(
                f"checkpoint.every={self.every}, checkpoint.keep_last={self.keep_last} and "
                f"checkpoint.keep_every={self.keep_every} must be at least 1."
            )


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
        """The run start..stop of the flattened tensor, f32 [stop - start]; no more than that is read."""
        stop = math.prod(self.shapes[name]) if stop is None else stop
        values = torch.empty(stop - start)
        for first, last, file, key in self.runs[name]:
            low, high = max(start, first), min(stop, last)
            if low < high:
                whole = first == 0 and last == math.prod(self.shapes[name])
                part = (
                    file.get_tensor(key).view(-1)[low:high]
                    if whole
                    else file.get_slice(key)[low - first : high - first]
                )
                values[low - start : high - start] = part
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
    (folders, *_) = gather_objects(committed(run_dir))
    for _, folder in reversed(folders):
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
        if meta["format"] != FORMAT:  # a matter of versions, not of damage
            raise UserError(
                f"{folder} has checkpoint format {meta['format']}, this MoFore reads {FORMAT}: go on with the "
                "version that wrote it, or choose another run_dir."
            )
        if meta["digest"] != digest_of(meta):
            return f"{folder / META} is damaged: its digest differs."
    except FileNotFoundError:
        return f"{folder / META} is missing."
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as reason:
        return f"{folder / META} is damaged: {type(reason).__name__} {reason}."
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


def digest_of(meta: dict[str, Any]) -> str:
    """SHA-256 (hex) of everything in checkpoint.json but itself."""
    rest = {key: value for key, value in meta.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def committed(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every committed checkpoint, oldest first; a folder of any other name is somebody's own copy."""
    folders = (run_dir / "checkpoints").glob("step-*")
    steps = [(path.name.removeprefix("step-"), path) for path in folders]
    return sorted((int(step), path) for step, path in steps if step.isdecimal())


def share_of(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """What this rank writes: the runs that it alone holds, and of what all hold, one of `world` equal runs."""
    pieces = list(pieces)
    total, at = sum(len(piece.values) for piece in pieces if piece.shared), 0
    low, high = total * rank() // world(), total * (rank() + 1) // world()
    for name, start, values, shared in pieces:
        if not shared:
            yield Piece(name, start, values, False)
            continue
        first, last = max(low - at, 0), min(high - at, len(values))
        if first < last:
            yield Piece(name, start + first, values[first:last], True)
        at += len(values)


def write_pieces(
    path: Path, pieces: Sequence[Piece], buffer: Tensor, shapes: dict[str, list[int]]
) -> dict[str, Any]:
    """One safetensors file, on the disk when this returns; and its size and digest.

    `buffer` holds the values of the pieces one after the other, so it is the file's body as it is. The library's
    writer would copy all of it twice, beside the training. A whole tensor has its own name and shape, a run of
    one is called NAME[START:STOP].
    """
    header: dict[str, Any] = {}
    at = 0
    for name, start, values, _ in pieces:
        stop, size = start + len(values), 4 * len(values)
        whole = len(values) == math.prod(shapes[name])
        key, shape = (name, shapes[name]) if whole else (f"{name}[{start}:{stop}]", [len(values)])
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = buffer.view(torch.uint8).numpy().data
    parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    parts += [body[i : i + SLAB] for i in range(0, at, SLAB)]
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        for part in parts:
            digest.update(part)
            done = 0
            while done < len(part):
                done += file.write(part[done:])
        os.fsync(file.fileno())
    return {"bytes": 8 + len(text) + at, "sha256": digest.hexdigest()}


def commit(draft: Path, final: Path, meta: dict[str, Any]) -> None:
    """Rank 0 alone, once all files are written: name them in checkpoint.json, and give the folder its name."""
    about = {"format": FORMAT, **meta}
    with (draft / META).open("x") as file:
        file.write(json.dumps(about | {"digest": digest_of(about)}, indent=1))
        file.flush()
        os.fsync(file.fileno())
    _sync(draft)
    if final.exists():
        remove(final)
    os.replace(draft, final)
    _sync(final.parent)


def prune(run_dir: Path, config: CheckpointConfig, keep: Iterable[Path] = ()) -> None:
    """Remove all but the newest `keep_last`, every `keep_every`-th step, and `keep`."""
    for step, path in committed(run_dir)[: -config.keep_last]:
        if path not in keep and (config.keep_every is None or step % config.keep_every):
            remove(path)


def remove(folder: Path) -> None:
    """A folder loses its name first, so that a reader never finds half of one."""
    gone = folder.with_name(f".{folder.name}.removing")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    shutil.rmtree(gone)


def _sync(folder: Path) -> None:
    """Names on the disk, as fsync does for bytes."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
