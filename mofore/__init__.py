"""MoFore: self-supervised video pretraining by forecasting what an EMA teacher will see.

The public Python API:

    encoder = mofore.load_encoder("encoders/mine")          # VideoEncoder, in eval mode
    embeddings = mofore.embed(encoder, ["a.mp4", "b.mp4"])  # numpy f32 [2, D]
    tokens = encoder(clips)                                 # u8 [B, 3, T, H, W] -> [B, N, D]
    embeddings = encoder.embed(clips)                       # u8 [B, 3, T, H, W] -> f32 [B, D]
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mofore.errors import UserError

if TYPE_CHECKING:
    from mofore.inference import embed, load_encoder
    from mofore.models.encoder import VideoEncoder

__all__ = ["UserError", "VideoEncoder", "__version__", "embed", "load_encoder"]
__version__ = version("mofore")

_LAZY = {
    "VideoEncoder": "mofore.models.encoder",
    "embed": "mofore.inference",
    "load_encoder": "mofore.inference",
}


def __getattr__(name: str) -> Any:
    """Import torch on first use of an encoder, so that `import mofore` is fast."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
