"""Entries of lists of videos, and the text that lists are read from."""

from dataclasses import dataclass

from mofore.errors import UserError

SPLITS = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **dict.fromkeys(("val", "valid", "validate", "validation"), "validation"),
}


@dataclass(slots=True)
class Entry:
    """One video of a list: its path, or the file names without suffix that it may have.

    where: its place in the list, as 'line 3'. offset, size: bytes of a member of a larger file.
    Absent values are None.
    """

    where: str
    path: str = ""
    stems: tuple[str, ...] = ()
    label: str | None = None
    group: str | None = None
    split: str | None = None
    offset: int | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        return self.path or self.stems[0]


def split_of(name: str) -> str | None:
    """The split that a folder or a value names, in any case: 'Training' -> 'train'."""
    return SPLITS.get(name.strip().lower())


def numbered_lines(path: str) -> list[tuple[int, str]]:
    """(number, line) of a text file, numbers from 1, without blanks around it or blank lines.

    Raises UserError if the file cannot be read or is not UTF-8.
    """
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_lines(path: str) -> list[str]:
    """The lines of `numbered_lines`."""
    return [line for _, line in numbered_lines(path)]


def read_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"Cannot read the list {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file in UTF-8. Give a list of videos.") from None
