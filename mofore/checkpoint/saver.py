"""Saving beside the training: a step waits only for a copy of the state in memory.

    save     copy this rank's shards into a buffer; a thread writes them to this rank's file
    commit   once all ranks have written, rank 0 commits with one rename; a thread removes old
             checkpoints
    upload   a thread of rank 0 copies what was committed to another place, with retries

A save that fails on one rank fails on all. Committed checkpoints are not touched; training
continues and retries.
"""

import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mofore.checkpoint.buffer import HostBuffer
from mofore.checkpoint.format import CheckpointConfig, checkpoints_dir, list_checkpoints
from mofore.checkpoint.upload import Upload
from mofore.checkpoint.writer import commit, owned_shards, prune, write_shards
from mofore.errors import UserError
from mofore.parallel.collectives import broadcast_object, gather_objects, get_rank, unique_token
from mofore.types import Shard

logger = logging.getLogger(__name__)
MAX_FAILURES = 10  # failed saves in a row that end the run


class Saver:
    """The checkpoints of one run. Every rank has one and calls it at the same steps.

    Raises UserError, on every rank, if the disk has no room for the checkpoints that it will keep.
    """

    def __init__(
        self, run_dir: Path, config: CheckpointConfig, shapes: dict[str, list[int]]
    ) -> None:
        check_disk_space(run_dir, config, shapes)
        self.run_dir, self.config, self.shapes = run_dir, config, shapes
        self.folder = checkpoints_dir(run_dir)
        self.token = unique_token()  # no file of an earlier start has this name
        self.upload = Upload(config.upload) if config.upload and get_rank() == 0 else None
        self.buffer: HostBuffer | None = None
        self.write_thread: threading.Thread | None = None
        self.prune_thread: threading.Thread | None = None
        self.failures = 0  # failed saves since the last success
        self.step = 0  # of the last save
        self.files: dict[str, Any] = {}
        self.fault: str | None = None
        if get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            stale = (*self.folder.glob(".step-*.writing"), *self.folder.glob(".step-*.removing"))
            for folder in stale:
                shutil.rmtree(folder)

    def should_save(self, step: int) -> bool:
        """Every `checkpoint.every` steps, and ten times as often after a failure."""
        every = max(1, self.config.every // 10) if self.failures else self.config.every
        return step % every == 0

    def save(self, step: int, state: Iterator[Shard], meta: dict[str, Any]) -> None:
        """Copy the state now and write it during the next steps. Commits a pending save first."""
        self.wait()
        shards = list(owned_shards(state))
        size = sum(len(shard.values) for shard in shards)
        if self.buffer is None or len(self.buffer.values) != size:
            self.buffer = None  # freed before the next one is allocated
            self.buffer = HostBuffer(size, pin=any(shard.values.is_cuda for shard in shards))
        self.buffer.copy(shards)
        self.step, self.meta = step, {"step": step, "shapes": self.shapes, **meta}
        work = shards, self.buffer.values
        self.write_thread = threading.Thread(target=self._write, args=work, daemon=True)
        self.write_thread.start()

    @property
    def writing(self) -> bool:
        """Whether this rank's file is still being written."""
        return self.write_thread is not None and self.write_thread.is_alive()

    @property
    def pending(self) -> bool:
        """Whether a save has not been committed yet: the same on every rank."""
        return self.write_thread is not None

    @property
    def temporary_folder(self) -> Path:
        return self.folder / f".step-{self.step}.{self.token}.writing"

    def commit(self) -> bool:
        """Commit what every rank has written; a collective.

        False, with a warning, if it failed on one rank.

        Raises UserError after MAX_FAILURES failures in a row.
        """
        assert self.write_thread is not None
        self.write_thread.join()
        self.write_thread = None
        answers = gather_objects((self.files, self.fault))  # on rank 0
        faults = [fault for _, fault in answers if fault]
        if not faults and get_rank() == 0:
            files = {name: facts for part, _ in answers for name, facts in part.items()}
            faults = self._commit_files(files)
        faults = broadcast_object(faults)
        if not faults:
            self.failures = 0
            return True
        self.failures += 1
        message = (
            f"The checkpoint of step {self.step} could not be written: {faults[0]}. Earlier ones "
            f"are intact. Free space or grant access to {self.folder}"
        )
        if get_rank() == 0:
            shutil.rmtree(self.temporary_folder, ignore_errors=True)
        if self.failures == MAX_FAILURES:
            raise UserError(f"{message}; then rerun the same command to resume.")
        if get_rank() == 0:
            logger.warning("%s; the save will be retried.", message)
        return False

    def _commit_files(self, files: dict[str, Any]) -> list[str]:
        """On rank 0; returns what went wrong."""
        final = self.folder / f"step-{self.step}"
        try:
            commit(self.temporary_folder, final, {**self.meta, "files": files})
        except OSError as error:
            return [str(error)]
        in_use = self.upload.add(final) if self.upload else ()
        if self.prune_thread:
            self.prune_thread.join()
        self.prune_thread = threading.Thread(target=self._prune, args=(in_use,), daemon=True)
        self.prune_thread.start()
        return []

    def wait(self) -> None:
        """Commit a pending save, waiting for it to be written."""
        if self.pending:
            self.commit()

    def close(self) -> None:
        """Commit the last save and finish the upload. Raises UserError if that save failed."""
        self.wait()
        if self.failures:
            raise UserError(
                f"The checkpoint of step {self.step} was not written (see the warning above): free "
                f"space or grant access to {self.folder}; then rerun the same command to resume "
                "from the one before."
            )
        if self.prune_thread:
            self.prune_thread.join()
        if self.upload:
            self.upload.close()

    def _prune(self, in_use: Sequence[Path]) -> None:
        """In a thread: removing a large file takes longer than copying the state."""
        try:
            prune(self.run_dir, self.config, keep=in_use)
        except OSError as error:
            logger.warning("An old checkpoint could not be removed: %s.", error)

    def _write(self, shards: list[Shard], values: Tensor) -> None:
        self.files, self.fault = {}, None
        try:
            self.temporary_folder.mkdir(parents=True, exist_ok=True)
            path = self.temporary_folder / f"rank-{get_rank():05d}.safetensors"
            self.files = {path.name: write_shards(path, shards, values, self.shapes)}
        except Exception as error:  # whatever it is, the ranks learn of it in `commit`
            self.fault = f"rank {get_rank()}: {type(error).__name__}: {error}"


def check_disk_space(run_dir: Path, config: CheckpointConfig, shapes: dict[str, list[int]]) -> None:
    """Raise UserError, on every rank, if the run's checkpoints do not fit on the disk."""
    fault = broadcast_object(
        _find_space_fault(run_dir, config, shapes) if get_rank() == 0 else None
    )
    if fault:
        raise UserError(fault)


def _find_space_fault(
    run_dir: Path, config: CheckpointConfig, shapes: dict[str, list[int]]
) -> str | None:
    size = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    existing = min(len(list_checkpoints(run_dir)), config.keep_last)
    needed = size * (config.keep_last + 1 - existing)  # one more while it is written
    place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free >= needed:
        return None
    return (
        f"run_dir={run_dir}: a checkpoint takes {_format_bytes(size)}. "
        f"checkpoint.keep_last={config.keep_last} and the one being written need "
        f"{_format_bytes(needed)}, {_format_bytes(free)} are free. Free space, lower "
        "checkpoint.keep_last, or choose another run_dir."
    )


def _format_bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
