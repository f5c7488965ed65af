"""encoder: tubelets are embedded by the plain formula, and only the visible ones."""

import pytest
import torch
import torch.nn.functional as F

from mofore.models.backbone import Attention
from mofore.models.encoder import MIN_TUBELET_VARIANCE, VideoEncoder
from mofore.models.positions import (
    resize_spatial_positions,
    resize_temporal_positions,
    to_tubelets,
)
from tests.models.test_encoder import build, clips


def first_block_input(encoder: VideoEncoder, video: torch.Tensor, visible=None) -> torch.Tensor:
    """The tokens that the first block gets, with prefix tokens."""
    seen = []
    hook = encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    encoder(video, visible)
    hook.remove()
    return seen[0]


def embed_all_tokens(encoder: VideoEncoder, video: torch.Tensor) -> torch.Tensor:
    """[B, T/t, N, D]: every pixel normalised in fp32, every token embedded, positions added."""
    tubelets = to_tubelets((video - encoder.mean) / encoder.std, 2, 8)
    if encoder.patch_norm:
        planes = tubelets.unflatten(-1, (3, -1))
        planes = F.layer_norm(planes, planes.shape[-1:], eps=MIN_TUBELET_VARIANCE)
        tubelets = planes.flatten(-2)
    grid = (video.shape[3] // 8, video.shape[4] // 8)
    spatial = resize_spatial_positions(encoder.spatial_positions, grid).unsqueeze(1)
    tokens = encoder.tubelet_embed(tubelets) + spatial
    if encoder.attention is Attention.joint:
        temporal = resize_temporal_positions(encoder.temporal_positions, tokens.shape[1])
        tokens = tokens + temporal.unsqueeze(2)
    return tokens


@pytest.mark.parametrize("patch_norm", [True, False])
@pytest.mark.parametrize("shape", [(4, 32, 32), (8, 32, 32), (6, 48, 24)])
@pytest.mark.parametrize("attention", list(Attention))
def test_all_tokens_are_embedded_as_by_the_plain_formula(patch_norm, shape, attention):
    """Bit for bit, also at other lengths and sizes, where positions are interpolated."""
    encoder = build(patch_norm=patch_norm, attention=attention)
    video = clips(shape[0], shape[1], width=shape[2])
    expected = embed_all_tokens(encoder, video)
    expected = expected.flatten(*((0, 1) if attention is Attention.per_frame else (1, 2)))
    assert torch.equal(first_block_input(encoder, video)[:, 1:], expected)


@pytest.mark.parametrize("patch_norm", [True, False])
@pytest.mark.parametrize("shape", [(4, 32, 32), (8, 32, 32), (6, 48, 24)])
def test_visible_tokens_are_embedded_as_by_the_plain_formula(patch_norm, shape):
    """To fp32 rounding: the sums of a matrix product depend on its shape."""
    encoder = build(patch_norm=patch_norm)
    video = clips(shape[0], shape[1], width=shape[2])
    every = embed_all_tokens(encoder, video).flatten(1, 2)
    torch.manual_seed(0)
    visible = torch.stack([torch.randperm(every.shape[1])[:9] for _ in range(2)])
    expected = torch.stack([tokens[kept] for tokens, kept in zip(every, visible, strict=True)])
    found = first_block_input(encoder, video, visible)[:, 1:]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(expected)
    gradients = [
        torch.autograd.grad(
            (tokens * weights).sum(),
            [encoder.spatial_positions, encoder.temporal_positions, encoder.tubelet_embed.weight],
        )
        for tokens in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_dropped_tokens_are_not_embedded():
    encoder, sizes = build(), []
    encoder.tubelet_embed.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape))
    encoder(clips(), torch.tensor([[0, 5, 6], [1, 2, 7]]))
    assert sizes == [(2, 3, 3 * 2 * 8 * 8)]
