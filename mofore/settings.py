"""How a configuration dataclass declares a key: its default and its description."""

import copy
from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


def setting(default: T, description: str) -> T:
    """A dataclass field with a default and a description of one sentence."""
    metadata = {"description": description}
    if isinstance(default, list | dict):  # each object gets a copy of its own
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)
