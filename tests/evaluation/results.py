"""A result of results.json, for tests of the table and the verdict."""

from typing import Any


def result(
    encoder, metric, value, low=None, high=None, protocol="p", note=None, n=10
) -> dict[str, Any]:
    return dict(
        encoder=encoder,
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=n,
        protocol=protocol,
        note=note,
    )
