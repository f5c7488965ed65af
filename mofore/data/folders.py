"""The videos below a local folder or a URL, and their names relative to it. Opens no video."""

import os
import posixpath
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import fsspec

from mofore.data.storage import local_path
from mofore.errors import UserError

SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".divx", ".mkv", ".webm", ".mpg", ".mpeg", ".m2v", ".vob"),
    *(".ts", ".mts", ".m2ts", ".wmv", ".asf", ".flv", ".f4v", ".ogv", ".ogg", ".3gp", ".3g2"),
    *(".gif", ".mxf", ".dv", ".y4m", ".mjpeg", ".mjpg", ".amv", ".rm", ".rmvb", ".wtv"),
)
CACHES = ("simplecache", "filecache", "blockcache")  # fsspec: they take the path of the next URL


@dataclass(frozen=True, slots=True)
class Root:
    """The folder of the videos. The uri of a video is before + key + after.

    Its key is its path relative to the folder, with forward slashes. after: the outer URLs of a
    chain, as `::file:///x.zip` of `zip://::file:///x.zip`; else "".
    """

    before: str
    after: str = ""

    @property
    def is_remote(self) -> bool:
        return "://" in self.before

    @property
    def folder(self) -> str:
        """A path or URL that lists the folder."""
        name = self.before.rstrip("/")
        return (f"{name}//" if name.endswith(":") else name or "/") + self.after

    def uri(self, key: str) -> str:
        return f"{self.before}{key}{self.after}"

    def key(self, uri: str) -> str | None:
        """None if `uri` is not below this folder."""
        if not (uri.startswith(self.before) and uri.endswith(self.after)):
            return None
        return uri[len(self.before) : len(uri) - len(self.after)] or None


class Videos(NamedTuple):
    """Sorted keys of the videos below a Root, and sentences that the user should read."""

    keys: list[str]
    notes: list[str]


def parse_root(root: str) -> Root:
    """Raises UserError if a local folder does not exist or fsspec cannot open a URL."""
    root = local_path(root)
    if os.path.isdir(root):
        return Root(os.path.join(os.path.abspath(root), ""))
    if "://" not in root and "::" not in root:
        what = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(f"{root} {what}. Give the folder that holds the videos.")
    check_protocols(root)
    parts = root.split("::")
    index = 0
    while parts[index].split("://")[0] in CACHES and index + 1 < len(parts):
        index += 1
    scheme, _, path = parts[index].partition("://")
    folder = f"{scheme}://{path.rstrip('/')}/" if path.strip("/") else f"{scheme}://"
    return Root("::".join([*parts[:index], folder]), "".join(f"::{p}" for p in parts[index + 1 :]))


def check_protocols(uri: str) -> None:
    """Raise UserError if a protocol of `uri` is unknown to fsspec or needs a missing package."""
    for part in uri.split("::"):
        scheme, separator, _ = part.partition("://")
        if not separator and os.sep in part:
            continue  # a local path at the end of a chain
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:  # fsspec's message names the package
            raise UserError(
                f"{uri} needs a Python package that is not installed. {error}, with pip."
            ) from None
        except ValueError:
            raise UserError(
                f"{uri}: {scheme} is not a protocol that fsspec knows. "
                "Give a path or a URL such as s3://bucket/folder."
            ) from None


def list_videos(root: Root) -> Videos:
    """Files with one of SUFFIXES. Hidden files and folders are skipped, links are followed.

    Raises UserError if a folder cannot be listed.
    """
    aside: Counter[str] = Counter()
    repeated: list[str] = []
    keys = []
    files = _walk_remote(root) if root.is_remote else _walk(root.folder, aside, repeated)
    for key in files:
        name = posixpath.basename(key)
        if key.startswith(".") or "/." in key:
            aside["hidden"] += 1
        elif key.lower().endswith(SUFFIXES):
            keys.append(key)
        elif name:  # object stores have empty objects that stand for folders
            aside[posixpath.splitext(name)[1].lower() or "without a suffix"] += 1
    return Videos(sorted(keys), _notes(aside, repeated))


def _walk(root: str, aside: Counter[str], repeated: list[str]) -> Iterator[str]:
    """Keys of all files. Each folder is listed once, under its own name before that of a link.

    Counts hidden folders in `aside`; `repeated`: folders left out, as 'link = first name'.
    """

    def raise_user_error(error: OSError) -> None:
        raise UserError(
            f"Cannot list the folder {error.filename}: {error.strerror}. Make it readable."
        )

    first_key: dict[str, str] = {}  # real path -> key
    starts = deque([root])
    while starts:
        for folder, subfolders, files in os.walk(starts.popleft(), onerror=raise_user_error):
            key = os.path.relpath(folder, root)
            real = os.path.realpath(folder)
            if real in first_key:  # a second name, or a loop of links
                repeated.append(f"{key} = {first_key[real]}")
                subfolders.clear()
                continue
            first_key[real] = key
            aside["hidden"] += sum(name.startswith(".") for name in subfolders)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            paths = [os.path.join(folder, name) for name in subfolders]
            starts.extend(path for path in paths if os.path.islink(path))
            yield from (name if key == "." else f"{key}/{name}" for name in files)


def _walk_remote(root: Root) -> Iterator[str]:
    try:
        system, path = fsspec.url_to_fs(root.folder)
        files = system.find(path)
    except Exception as error:  # each file system has its own exceptions
        raise UserError(
            f"Cannot list {root.folder}: {type(error).__name__}: {error}. "
            "Check the address and your access to it."
        ) from None
    for file in files:
        yield file[len(path.rstrip("/")) :].lstrip("/")


def _notes(aside: Counter[str], repeated: Sequence[str]) -> list[str]:
    notes = []
    if repeated:
        notes.append(
            f"{len(repeated)} folders have two names because of links; their videos are listed "
            f"once, under the second name of each pair: {examples(repeated)}. Copy a folder to "
            "list it twice."
        )
    if counts := [f"{count} {what}" for what, count in aside.most_common() if count]:
        remedy = " Rename files without a suffix if they are videos."
        notes.append(
            f"Left aside, because their names are not names of videos: {examples(counts, 10)}."
            + remedy * ("without a suffix" in aside)
        )
    return notes


def examples(items: Sequence[str], shown: int = 3) -> str:
    """The first items and the number of others: 'a, b, c and 7 more'."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more
