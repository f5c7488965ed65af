"""Clips in, embeddings out: the encoders under test and the pixel baselines, all fed by one decode of each video."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from mofore.data.loader import batches_of
from mofore.errors import UserError

SIDE = 8  # pixels of a baseline's side

Encoder = Callable[[Tensor], Tensor]  # clips u8 [B, 3, T, H, W] -> f32 [B, D]


def pixels(clips: Tensor) -> Tensor:
    """Every frame averaged down to 8 x 8 and all of it flattened, in 0..1. Returns f32 [B, 3 * T * 64]."""
    return _shrink(clips.float() / 255)


def frame_differences(clips: Tensor) -> Tensor:
    """Absolute differences of consecutive frames, averaged down likewise. Returns f32 [B, 3 * (T - 1) * 64]."""
    return _shrink((clips.float() / 255).diff(dim=2).abs())


def _shrink(clips: Tensor) -> Tensor:
    frames = clips.shape[2]
    return F.adaptive_avg_pool3d(clips, (frames, SIDE, SIDE)).flatten(1)


@torch.inference_mode()
def embed_all(
    encoders: Mapping[str, Encoder],
    batches: DataLoader | Sequence[tuple[Tensor, Tensor]],
    device: torch.device,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Every encoder's embedding of every view.

    batches: clips u8 [B, V, 3, T, H, W] and rows i64 [B]. Returns the rows i64 [N], ascending, and for each
    encoder f32 [N, V, D]. Raises UserError where one is not finite.
    """
    seen: list[np.ndarray] = []
    collected: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for clips, rows in tqdm(batches_of(batches), desc="features", total=len(batches), leave=False):
        seen.append(rows.numpy())
        views = clips.to(device, non_blocking=True).unbind(dim=1)
        for name, encoder in encoders.items():
            # One view after the other: a batch of floats at once, not V of them.
            collected[name].append(
                torch.stack([encoder(view) for view in views], dim=1).float().cpu().numpy()
            )
    rows = np.concatenate(seen)
    order = np.argsort(rows, kind="stable")
    whole = {name: np.concatenate(parts)[order] for name, parts in collected.items()}
    for name, embeddings in whole.items():
        if not np.isfinite(embeddings).all():
            raise UserError(
                f"The {name} encoder's embeddings are not finite: evaluate an earlier checkpoint."
            )
    return rows[order], whole
