"""logs: one format; rank 0 on the console, every rank in its own file."""

import logging
import re

import pytest

from mofore.logs import log_to_file, setup_logging

LINE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} %s +\[rank %d\] %s\n"


@pytest.fixture(autouse=True)
def _restore():
    logger = logging.getLogger("mofore")
    before, level = list(logger.handlers), logger.level
    logger.handlers = []
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.propagate = before, True
    logger.setLevel(level)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_a_line_goes(tmp_path, capfd, rank):
    logger = logging.getLogger("mofore.somewhere")
    setup_logging(rank)
    setup_logging(rank)  # a second call adds no second line
    log_to_file(tmp_path, rank)
    logger.info("begins")
    logger.error("ends")
    begins, ends = LINE % ("INFO", rank, "begins"), LINE % ("ERROR", rank, "ends")
    console = capfd.readouterr().err
    assert re.fullmatch(ends if rank else begins + ends, console), console
    assert re.fullmatch(begins + ends, (tmp_path / "logs" / f"rank-0000{rank}.log").read_text())


def test_every_rank_of_a_run_has_its_file(tmp_path, run_small):
    run = run_small(tmp_path / "run", "steps=2")
    assert [path.name for path in (run / "logs").iterdir()] == ["rank-00000.log"]
