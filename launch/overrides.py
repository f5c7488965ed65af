"""KEY=VALUE overrides as text: written from values, and sorted by whom they are for."""

import re
from typing import Any

from mofore.config import flatten_dict, to_plain_dict


def to_override(key: str, value: object) -> str:
    """KEY=VALUE that hydra reads back as exactly this value, whatever characters it has."""
    return f"{key}={_to_text(value)}"


def _to_text(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(map(_to_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_to_text(item)}' for key, item in value.items())}}}"
    # omegaconf: the backslashes before ${ count double, and one more makes it literal
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    # hydra: the backslashes before a quote or the closing quote count double
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f"'{text}'"


def overrides_of(config: Any) -> list[str]:
    """The overrides that compose this configuration, one per key."""
    return [to_override(key, value) for key, value in flatten_dict(to_plain_dict(config)).items()]


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """(those of the cluster, the others), each in order."""
    cluster = [word for word in overrides if word.startswith(("cluster=", "cluster."))]
    return cluster, [word for word in overrides if word not in cluster]
