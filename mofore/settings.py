"""How a configuration dataclass declares a key: a default and the description that `--help` prints."""

from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


def setting(default: T, description: str) -> T:
    """A dataclass field with a default and a description of one sentence."""
    metadata = {"description": description}
    if isinstance(default, list):
        # Type: ignore[return-value]
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)
