"""The table of configuration keys that `--help` prints, from the dataclasses themselves."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from mofore.config import CONFIG_DIR, PretrainConfig, to_plain

GROUPS = ("backbone", "experiment")  # of a pretraining: whole files of keys


def describe_keys(kind: type, config_dir: Path | None = None) -> str:
    """A table of every key with its type, default and description, as `--help` prints it."""
    rows = [("key", "type", "default", "description"), *_key_rows(kind(), "")]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows]
    if kind is PretrainConfig:
        lines += ["", "Groups of keys, from YAML files:"]
        lines += [f"{group}={'|'.join(group_options(group, config_dir))}" for group in GROUPS]
    return "\n".join(lines)


def group_options(group: str, config_dir: Path | None) -> list[str]:
    folders = [folder for folder in (config_dir, CONFIG_DIR) if folder]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def _key_rows(config: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    hints = get_type_hints(type(config))
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            yield from _key_rows(value, f"{prefix}{each.name}.")
            continue
        description = each.metadata.get("description", "")
        default = "(required)" if value == MISSING else to_plain(value)
        default = "null" if default is None else str(default)
        yield f"{prefix}{each.name}", _type_name(hints[each.name]), default, description


def _type_name(hint: Any) -> str:
    """int, int|str, int|null, list[float], or the options of an enum: mse|smooth_l1."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(hint.__members__)
    options = get_args(hint)
    if get_origin(hint) is dict:
        return "mapping"
    if get_origin(hint) in (Union, UnionType):
        names = [_type_name(option) for option in options if option is not type(None)]
        return "|".join([*names, "null"] if type(None) in options else names)
    return hint.__name__ if isinstance(hint, type) and not options else str(hint)
