"""Embedding of clips with the encoders under test and with two pixel baselines."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mofore.data.loader import iterate_batches
from mofore.errors import UserError
from mofore.inference import on_host
from mofore.precision import Precision, autocast

BASELINE_SIZE = 8  # pixels, height and width of a baseline's frames

Encoder = Callable[[Tensor], Tensor]  # clips u8 [B, 3, T, H, W] -> f32 [B, D]


def pixels(clips: Tensor) -> Tensor:
    """Frames, average-pooled to 8 x 8 pixels and flattened, in 0..1.

    Returns f32 [B, 3 * T * 64].
    """
    return _pool(clips.float() / 255)


def frame_differences(clips: Tensor) -> Tensor:
    """Absolute differences of consecutive frames, pooled likewise.

    Returns f32 [B, 3 * (T-1) * 64].
    """
    return _pool((clips.float() / 255).diff(dim=2).abs())


def _pool(clips: Tensor) -> Tensor:
    size = (clips.shape[2], BASELINE_SIZE, BASELINE_SIZE)
    return F.adaptive_avg_pool3d(clips, size).flatten(1)


@torch.inference_mode()
def embed_all(
    encoders: Mapping[str, Encoder],
    batches: DataLoader | Sequence[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: Precision = Precision.fp32,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Embed every view with every encoder; each batch is decoded once for all of them.

    batches: clips u8 [B, V, 3, T, H, W] and manifest rows i64 [B]. precision: a resolved one.
    Returns the rows i64 [N], ascending, and f32 [N, V, D] for each encoder. Raises UserError if an
    embedding is not finite.
    """
    progress = tqdm(iterate_batches(batches), desc="features", total=len(batches), leave=False)

    def embedded() -> Iterator[list[Tensor]]:
        for clips, rows in progress:
            views = clips.to(device, non_blocking=True).unbind(dim=1)
            with autocast(precision, device):
                # One view at a time: only one view of the batch is held as floats.
                of_encoders = [
                    torch.stack([encoder(view) for view in views], dim=1).float()
                    for encoder in encoders.values()
                ]
            yield [rows, *of_encoders]

    seen: list[np.ndarray] = []
    collected: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for batch_rows, *of_encoders in on_host(embedded(), device):
        seen.append(batch_rows)
        for parts, embeddings in zip(collected.values(), of_encoders, strict=True):
            parts.append(embeddings)
    rows = np.concatenate(seen)
    order = np.argsort(rows, kind="stable")
    sorted_embeddings = {name: np.concatenate(parts)[order] for name, parts in collected.items()}
    for name, embeddings in sorted_embeddings.items():
        if not np.isfinite(embeddings).all():
            raise UserError(
                f"The {name} encoder's embeddings are not finite: evaluate an earlier checkpoint."
            )
    return rows[order], sorted_embeddings
