"""Verify many videos in worker processes that can be killed: native code may crash or hang."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from mofore.data.sources import Source
from mofore.data.storage import DecodeError, first_line, local_path
from mofore.data.verify import Verified

TIMEOUT_BYTES = 20_000_000


def verify_all(
    sources: Sequence[Source], check: Callable[..., Verified], workers: int, timeout: float
) -> Iterator[tuple[int, Verified | str]]:
    """The number of each source and what `check` found, or the reason why it was refused; in the
    order in which they are done.

    check: called with the uri, offset and size of a source. workers: processes. timeout: seconds
    allowed for a video, and again for each TIMEOUT_BYTES of it.
    """
    if not sources:
        return
    queue = iter(range(len(sources)))
    pending: dict[Future, int] = {}
    workers = min(workers, len(sources))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPool(workers, initializer=_silence_stderr, context=context)
    try:
        with tqdm(total=len(sources), desc="decoding", unit="video", disable=None) as bar:
            while len(pending) < 4 * workers and (index := next(queue, None)) is not None:
                pending[_schedule(pool, check, sources[index], timeout)] = index
            while pending:
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), _result(future, timeout)
                    bar.update()
                    if (index := next(queue, None)) is not None:
                        pending[_schedule(pool, check, sources[index], timeout)] = index
    finally:  # on Ctrl-C too: no worker may outlive this function
        pool.stop()
        pool.join()


def _schedule(
    pool: ProcessPool, check: Callable[..., Verified], source: Source, timeout: float
) -> Future:
    arguments = source.uri, source.offset, source.size
    return pool.schedule(
        check, args=arguments, timeout=timeout * (1 + _size(source) // TIMEOUT_BYTES)
    )


def _size(source: Source) -> int:
    """Bytes; 0 for a file of which only its file system knows."""
    if source.size is not None:
        return source.size
    try:
        return os.stat(local_path(source.uri)).st_size
    except (OSError, ValueError):
        return 0


def _result(future: Future, timeout: float) -> Verified | str:
    try:
        return future.result()
    except DecodeError as error:
        return error.reason
    except TimeoutError:
        return f"timed out after {timeout:g} s"
    except ProcessExpired as error:
        return f"worker died (exit code {error.exitcode})"
    except Exception as error:  # one malformed file must not end the scan of a million others
        return f"{type(error).__name__}: {first_line(error)}"


def _silence_stderr() -> None:
    """decord's native log would disturb the progress bar; its errors arrive as exceptions."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
