"""Logging: one format with time, level and rank; rank 0 on the console, every rank in its own file.

Modules log through `logging.getLogger(__name__)`. `setup_logging` is called once, by a command or
at the start of a rank; importing MoFore configures nothing.
"""

import logging
import os
import sys
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)-7s [rank %(rank)s] %(message)s"


class _ConsoleHandler(logging.StreamHandler):
    """Looks up sys.stderr at every record, so that a progress bar or a test may replace it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            super().emit(record)


def setup_logging(rank: int | None = None) -> None:
    """Send MoFore's log to stderr: INFO and above on rank 0, errors only on the others.

    rank: defaults to the environment variable RANK, else 0.
    """
    rank = int(os.environ.get("RANK", "0")) if rank is None else rank
    logger = logging.getLogger("mofore")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    console = _ConsoleHandler()
    console.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    _replace_handler(logger, console, rank)


def log_to_file(run_dir: Path, rank: int) -> None:
    """Also append this rank's log to RUN/logs/rank-N.log."""
    folder = run_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    _replace_handler(
        logging.getLogger("mofore"), logging.FileHandler(folder / f"rank-{rank:05d}.log"), rank
    )


def _replace_handler(logger: logging.Logger, handler: logging.Handler, rank: int) -> None:
    """Add the handler in place of one of the same kind."""
    handler.setFormatter(logging.Formatter(FORMAT, defaults={"rank": rank}))
    for old in [each for each in logger.handlers if type(each) is type(handler)]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
