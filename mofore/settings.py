"""How a configuration dataclass declares a key: its default and its description."""

from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


def setting(default: T, description: str) -> T:
    """A dataclass field with a default and a description of one sentence."""
    metadata = {"description": description}
    if isinstance(default, list):
        items = list(default)
        return field(default_factory=lambda: list(items), metadata=metadata)  # type: ignore
    return field(default=default, metadata=metadata)
