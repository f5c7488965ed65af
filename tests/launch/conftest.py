"""Commands run in this process: what they change in it is undone."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logger_state() -> Iterator[None]:
    """A command sets up logging; tests elsewhere read records through the root logger."""
    logger = logging.getLogger("mofore")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.level, logger.propagate, logger.handlers = before
