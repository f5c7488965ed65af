"""A checkpoint beside the training: the step waits for a copy in memory, and no longer.

    save      copy this rank's share of the state into a buffer (the step waits for this alone)
    behind    a thread writes the buffer to this rank's file, syncs and digests it
    settle    once the ranks agree that all have written, rank 0 commits by one rename; a thread removes old ones
    upload    a thread of rank 0 copies what was committed to another place, and tries again where that fails

A save that fails on one rank fails on all. Nothing committed is touched; the training goes on and tries again.
"""

import json
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import tenacity
import torch

from mofore.commit import META, CheckpointConfig, commit, prune, share_of, write_pieces
from mofore.distributed import from_rank_0, gather_objects, rank, run_token
from mofore.errors import UserError
from mofore.listing import committed
from mofore.types import Piece

TRIES = 10  # saves that may fail one after the other before the run stops


class Saver:
    """The checkpoints of one run, written behind it. Every rank has one, and calls it at the same steps."""

    def __init__(self, run_dir: Path, config: CheckpointConfig, shapes: dict[str, list[int]]) -> None:
        self.run_dir, self.config, self.shapes = run_dir, config, shapes
        self.folder = run_dir / "checkpoints"
        self.token = run_token()  # so that no file of an earlier start is met
        self.upload = Upload(config.upload, self.folder) if config.upload and rank() == 0 else None
        self.buffer = torch.empty(0)
        self.thread: threading.Thread | None = None
        self.pruning: threading.Thread | None = None
        self.failures = 0  # saves that failed since the last that did not
        self.step = 0  # of the last save
        self.facts: dict[str, Any] = {}
        self.fault: str | None = None
        if rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in (*self.folder.glob(".step-*.writing"), *self.folder.glob(".step-*.removing")):
                shutil.rmtree(left)

    def due(self, step: int) -> bool:
        """Whether to save after this step: every `checkpoint.every`, and ten times as often after a failure."""
        return step % (max(1, self.config.every // 10) if self.failures else self.config.every) == 0

    def save(self, step: int, state: Iterator[Piece], meta: dict[str, Any]) -> None:
        """Copy the state now and write it behind the coming steps. Waits for the save before, if that is not done."""
        self.wait()
        pieces, size = list(share_of(state)), 0
        total = sum(len(piece.values) for piece in pieces)
        if len(self.buffer) != total:
            on_gpu = any(piece.values.is_cuda for piece in pieces)
            self.buffer = torch.empty(total, pin_memory=on_gpu)
        for piece in pieces:
            self.buffer[size : size + len(piece.values)].copy_(piece.values, non_blocking=True)
            size += len(piece.values)
        if self.buffer.is_pinned():
            torch.cuda.synchronize()
        self.step, self.meta = step, {"step": step, "shapes": self.shapes, **meta}
        self.thread = threading.Thread(target=self._write, args=(pieces,), daemon=True)
        self.thread.start()

    @property
    def writing(self) -> bool:
        """Whether this rank's file is not on the disk yet."""
        return self.thread is not None and self.thread.is_alive()

    @property
    def open(self) -> bool:
        """Whether a save waits to be settled: the same on every rank."""
        return self.thread is not None

    @property
    def draft(self) -> Path:
        return self.folder / f".step-{self.step}.{self.token}.writing"

    def settle(self) -> bool:
        """Commit what every rank has written; a collective. False where it failed on one, which is then said.

        Raises UserError after TRIES failures in a row.
        """
        assert self.thread is not None
        self.thread.join()
        self.thread = None
        answers = gather_objects((self.facts, self.fault))
        files = {name: facts for part, _ in answers for name, facts in part.items()}
        faults = [fault for _, fault in answers if fault]
        if not faults and rank() == 0:
            try:
                final = self.folder / f"step-{self.step}"
                commit(self.draft, final, {**self.meta, "files": files})
                busy = self.upload.add(final) if self.upload else ()
                if self.pruning:
                    self.pruning.join()
                self.pruning = threading.Thread(target=self._prune, args=(busy,), daemon=True)
                self.pruning.start()
            except OSError as reason:
                faults = [str(reason)]
        faults = from_rank_0(faults)
        if not faults:
            self.failures = 0
            return True
        self.failures += 1
        said = (
            f"the checkpoint of step {self.step} could not be written: {faults[0]}. Those before it stand. Free "
            f"space or give access to {self.folder}"
        )
        if rank() == 0:
            shutil.rmtree(self.draft, ignore_errors=True)
        if self.failures == TRIES:
            raise UserError(f"{said}; the same command goes on from the last of them.")
        if rank() == 0:
            print(f"mofore: {said}; it is tried again.", file=sys.stderr, flush=True)
        return False

    def wait(self) -> None:
        """Settle a save that is still open."""
        if self.open:
            self.settle()

    def close(self) -> None:
        """Settle the last save and finish the upload. Raises UserError where that save failed."""
        self.wait()
        if self.failures:
            raise UserError(
                f"the checkpoint of step {self.step} is not written, see above: free space or give access to "
                f"{self.folder}; the same command goes on from the one before."
            )
        if self.pruning:
            self.pruning.join()
        if self.upload:
            self.upload.close()

    def _prune(self, busy: Sequence[Path]) -> None:
        """Behind the steps too: to remove a large file takes longer than to copy the state."""
        try:
            prune(self.run_dir, self.config, keep=busy)
        except OSError as reason:
            print(f"mofore: an old checkpoint could not be removed: {reason}.", file=sys.stderr, flush=True)

    def _write(self, pieces: list[Piece]) -> None:
        self.facts, self.fault = {}, None
        try:
            self.draft.mkdir(parents=True, exist_ok=True)
            path = self.draft / f"rank-{rank():05d}.safetensors"
            self.facts = {path.name: write_pieces(path, pieces, self.buffer, self.shapes)}
        except Exception as reason:  # whatever it is, the ranks hear of it and decide together
            self.fault = f"rank {rank()}: {type(reason).__name__}: {reason}"


def check_space(run_dir: Path, config: CheckpointConfig, shapes: dict[str, list[int]]) -> None:
    """UserError where the disk has no room for the checkpoints that the run will keep."""
    size = sum(4 * torch.Size(shape).numel() for shape in shapes.values())
    there = min(len(committed(run_dir)), config.keep_last)
    needed = size * (config.keep_last + 1 - there)  # one more than is kept, while it is written
    place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"run_dir={run_dir}: a checkpoint takes {_bytes(size)}, so {_bytes(needed)} are needed for "
            f"checkpoint.keep_last={config.keep_last} and the one being written, and {_bytes(free)} are free. "
            "Free space, lower checkpoint.keep_last, or choose another run_dir."
        )


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


class Upload:
    """Copies of committed checkpoints under an fsspec URL, made by a thread; the newest waiting one goes next.

    checkpoint.json comes last, so that a copy without it is known to be unfinished.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url.rstrip("/"), folder
        self.next: Path | None = None
        self.current: Path | None = None
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def add(self, checkpoint: Path) -> list[Path]:
        """Copy this one next; returns those that must not be removed yet."""
        with self.changed:
            self.next = checkpoint
            self.changed.notify()
            return [path for path in (self.current, self.next) if path]

    def close(self) -> None:
        """Wait until the last one is copied, or has failed for good."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.current = None
                self.changed.wait_for(lambda: self.next or self.closed)
                if self.next is None:
                    return
                self.current, self.next = self.next, None
            try:
                self._copy(self.current)
            except Exception as reason:  # the checkpoint itself stands, so the run goes on
                print(
                    f"mofore: {self.current} was not copied to {self.url}: {type(reason).__name__}: {reason}. "
                    "It stands where it is; copy it yourself, or see checkpoint.upload.",
                    file=sys.stderr,
                    flush=True,
                )

    @tenacity.retry(stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_exponential(max=60), reraise=True)
    def _copy(self, checkpoint: Path) -> None:
        system, root = fsspec.core.url_to_fs(f"{self.url}/{checkpoint.name}")
        system.makedirs(root, exist_ok=True)
        names = [*json.loads((checkpoint / META).read_text())["files"], META]
        for name in names:
            system.put_file(str(checkpoint / name), f"{root}/{name}")
