"""KEY=VALUE overrides of a configuration, and sorted by whom they are for."""

from typing import Any

from mofore.config import flatten_dict, to_plain_dict
from mofore.quoting import to_override


def overrides_of(config: Any) -> list[str]:
    """The overrides that compose this configuration, one per key."""
    return [to_override(key, value) for key, value in flatten_dict(to_plain_dict(config)).items()]


def split_overrides(overrides: list[str]) -> tuple[list[str], list[str]]:
    """(those of the cluster, the others), each in order."""
    cluster = [word for word in overrides if word.startswith(("cluster=", "cluster."))]
    return cluster, [word for word in overrides if word not in cluster]
