"""The bytes of a video, wherever it lies: the path of a local file, or what fsspec reads."""

import os
import re
from typing import NamedTuple

import fsspec
import tenacity

READ_ATTEMPTS = 5
READ_WAIT = 0.5  # seconds, at most, before the second attempt; doubles with each one
# Errors that no second attempt changes; ValueError is that of a scheme that fsspec does not know.
CERTAIN = (FileNotFoundError, PermissionError, ImportError, ValueError)


class DecodeError(Exception):
    """A video that cannot be decoded: its `uri` and a one-line `reason`."""

    def __init__(self, uri: str, reason: str):
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"


class VideoFile(NamedTuple):
    """A video to open: its `uri`, for messages, and the path of a local file or its bytes."""

    uri: str
    data: str | bytes

    @property
    def size(self) -> int:
        """Bytes. Raises DecodeError if the file cannot be looked at."""
        if isinstance(self.data, bytes):
            return len(self.data)
        try:
            return os.stat(self.data).st_size
        except OSError as error:
            raise DecodeError(self.uri, os_reason(error)) from None


def local_path(uri: str) -> str:
    """A uri without the scheme `file://`; others, and chains of URLs, stay as they are."""
    return uri if "::" in uri else uri.removeprefix("file://")


def load(uri: str, offset: int | None = None, size: int | None = None) -> VideoFile:
    """The path of a local file, or the bytes [offset, offset + size) if an offset is given.

    Other file systems are read whole by fsspec, and again if that fails in a way that may pass.
    The file system is created here, in the process that reads: s3fs and others do not survive a
    fork.

    Raises DecodeError if the bytes cannot be read.
    """
    path = local_path(uri)
    if offset is None and "://" not in path:
        return VideoFile(uri, path)
    part = () if offset is None else (offset, offset + (size or 0))
    try:
        data = _read(uri, *part)
    except (FileNotFoundError, PermissionError) as error:
        raise DecodeError(uri, os_reason(error)) from None
    except Exception as error:  # each file system has its own exceptions
        reason = f"cannot be read: {type(error).__name__}: {first_line(error)}"
        raise DecodeError(uri, reason) from error
    if offset is not None and len(data) != size:
        raise DecodeError(uri, f"the file ends inside this member (offset {offset}, size {size})")
    return VideoFile(uri, data)


@tenacity.retry(
    retry=tenacity.retry_if_not_exception_type(CERTAIN),
    stop=tenacity.stop_after_attempt(READ_ATTEMPTS),
    wait=tenacity.wait_random_exponential(multiplier=READ_WAIT, max=10),
    reraise=True,
)
def _read(uri: str, *part: int) -> bytes:
    """Bytes of a file, or those of `part`: start and end."""
    system, path = fsspec.url_to_fs(uri)
    data = system.cat_file(path, *part)
    if part and len(data) != part[1] - part[0] and system.size(path) >= part[1]:
        raise OSError(f"{len(data)} bytes came in place of {part[1] - part[0]}")
    return data


def fingerprint(uri: str) -> str:
    """What the file system says of a file (size, times, ETag) as a hash; "" if it does not say."""
    try:
        system, path = fsspec.url_to_fs(uri)
        return str(system.ukey(path))[:16]  # 64 bits
    except Exception:  # each file system has its own exceptions
        return ""


def os_reason(error: OSError) -> str:
    """Why a local file cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return error.strerror or first_line(error)


def first_line(error: BaseException) -> str:
    """First line of an error, without decord's time, source positions and memory addresses."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", line)
    return re.sub(r"Check failed: .*? \(.*? vs\. .*?\) ", "", line)[:200]
