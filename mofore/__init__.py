"""MoFore: self-supervised video pretraining by forecasting what an EMA teacher will see."""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mofore.export import load_encoder

__all__ = ["load_encoder"]
__version__ = version("mofore")


def __getattr__(name: str):
    """torch and timm are imported when an encoder is asked for, not by `mofore --help`."""
    if name == "load_encoder":
        from mofore.export import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
