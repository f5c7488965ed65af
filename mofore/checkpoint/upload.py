"""Copies of committed checkpoints at an fsspec URL, made by a thread of rank 0."""

import json
import logging
import threading
from pathlib import Path

import fsspec
import tenacity

from mofore.checkpoint.format import META_NAME

logger = logging.getLogger(__name__)


class Upload:
    """Copies one checkpoint at a time; of those that wait, only the newest is copied.

    checkpoint.json is copied last, so that a copy without it is known to be incomplete.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.next: Path | None = None
        self.current: Path | None = None
        self.changed = threading.Condition()
        self.closed = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def add(self, checkpoint: Path) -> list[Path]:
        """Copy this one next; returns the folders that must not be removed yet."""
        with self.changed:
            self.next = checkpoint
            self.changed.notify()
            return [path for path in (self.current, self.next) if path]

    def close(self) -> None:
        """Wait until the last one is copied or has failed for good."""
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _run(self) -> None:
        while True:
            with self.changed:
                self.current = None
                self.changed.wait_for(lambda: self.next or self.closed)
                if self.next is None:
                    return
                self.current, self.next = self.next, None
            try:
                self._copy(self.current)
            except Exception as error:  # the local checkpoint exists, so the run continues
                logger.warning(
                    "%s was not copied to %s: %s: %s. The local checkpoint is kept; copy it "
                    "yourself, or change checkpoint.upload.",
                    self.current,
                    self.url,
                    type(error).__name__,
                    error,
                )

    @tenacity.retry(
        stop=tenacity.stop_after_attempt(5), wait=tenacity.wait_exponential(max=60), reraise=True
    )
    def _copy(self, checkpoint: Path) -> None:
        system, root = fsspec.core.url_to_fs(f"{self.url}/{checkpoint.name}")
        system.makedirs(root, exist_ok=True)
        names = [*json.loads((checkpoint / META_NAME).read_text())["files"], META_NAME]
        for name in names:
            system.put_file(str(checkpoint / name), f"{root}/{name}")
