"""How a configuration dataclass declares a key: its default and its description; all its keys."""

import copy
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def setting(default: T, description: str) -> T:
    """A dataclass field with a default and a description of one sentence."""
    metadata = {"description": description}
    if isinstance(default, list | dict):  # each object gets a copy of its own
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def key_types(kind: type) -> dict[str, Any]:
    """The type of every key of a configuration dataclass: {"data.size": int, ...}."""
    return _key_types(kind(), "")


def _key_types(config: Any, prefix: str) -> dict[str, Any]:
    hints, types = get_type_hints(type(config)), {}
    for each in fields(config):
        key, value = f"{prefix}{each.name}", getattr(config, each.name)
        group = _key_types(value, f"{key}.") if is_dataclass(value) else {key: hints[each.name]}
        types.update(group)
    return types
