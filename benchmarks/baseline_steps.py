"""The training steps that benchmarks.step times: MoFore's and Hugging Face transformers'."""

import argparse
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.training_step import RANK_TIMEOUT, TrainingStep, random_batch
from mofore.collapse_monitor import CollapseMonitor
from mofore.config import PretrainConfig, compose
from mofore.models.ema import update_teacher
from mofore.models.objective import build_pretraining
from mofore.parallel.engine import start_ranks
from mofore.startup import build_training_engine

Step = Callable[[], object]
ALL_TOKENS = ["data.targets=1", "data.token_keep_ratio=1"]
DEFAULT = "MoFore, default recipe"
WHOLE = "MoFore, all tokens"
CHECKPOINTED = "MoFore, all tokens, gradient checkpointing"
MOFORE: dict[str, list[str]] = {
    DEFAULT: [],
    WHOLE: ALL_TOKENS,
    CHECKPOINTED: [*ALL_TOKENS, "backbone.grad_checkpoint_every=1"],
    "MoFore, a quarter of the tokens": ["data.targets=1", "data.token_keep_ratio=0.25"],
    "MoFore, all tokens, two targets": ["data.targets=2", "data.token_keep_ratio=1"],
}
VJEPA2, VIDEOMAE = "V-JEPA 2 (transformers)", "VideoMAE (transformers), 90% masked"
TEACHER_MOMENTUM = 0.996


def step_config(options: argparse.Namespace, overrides: list[str]) -> PretrainConfig:
    """The configuration of MoFore's step at the backbone, clip and batch of the options."""
    shape = [
        f"backbone={options.backbone}",
        f"data.frames={options.frames}",
        f"data.size={options.size}",
        f"global_batch={options.batch}",
    ]
    return compose(PretrainConfig, [*shape, "data.manifest=none", *overrides])


def collapse_measurement(config: PretrainConfig) -> Step:
    """One measurement of the collapse monitor."""
    engine = build_training_engine(config, None, start_ranks(RANK_TIMEOUT))
    clip = random_batch(config, torch.device("cpu")).context.shape[1:]
    clips = torch.randint(0, 256, (config.collapse.videos, 2, *clip), dtype=torch.uint8)
    monitor = CollapseMonitor(config.collapse, clips, config.global_batch)
    return lambda: monitor.measure(engine)


def mofore_passes(config: PretrainConfig, backward: bool = True) -> Step:
    """Forward, and backward unless disabled, of the bare module, without an optimizer.

    Gradients are allocated once, as in a run. The step returns the loss. Without backward, the loss
    holds every activation that backward would need.
    """
    model = build_pretraining(config.model(), 0)
    batch = random_batch(config, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def step() -> torch.Tensor:
        targets = model(batch)
        loss = model(batch, targets, targets.keys).total
        if backward:
            loss.backward()
        return loss

    return step


def vjepa2_step(options: argparse.Namespace) -> Step:
    """Assran et al. 2025: predict an EMA encoder's tokens from a context of tokens (L1).

    The published predictor (12 blocks, width 384). The encoder of the package sees all tokens, the
    predictor an eighth of them; the others are targets, as the multi-block masks leave them.
    """
    from transformers import VJEPA2Config, VJEPA2Model

    shape = _backbone_shape(options)
    config = VJEPA2Config(
        crop_size=options.size,
        frames_per_clip=options.frames,
        hidden_size=shape.embed_dim,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
    )
    model = VJEPA2Model(config)
    teacher = copy.deepcopy(model.encoder).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    clips = torch.randn(options.batch, options.frames, 3, options.size, options.size)
    tokens = options.frames // 2 * (options.size // 16) ** 2
    order = torch.randperm(tokens).expand(options.batch, -1)
    context, masked = order[:, : tokens // 8].sort().values, order[:, tokens // 8 :].sort().values

    def step() -> None:
        with torch.no_grad():
            latents = F.layer_norm(teacher(clips).last_hidden_state, (shape.embed_dim,))
            target = latents.gather(1, masked[..., None].expand(-1, -1, latents.shape[-1]))
        output = model(clips, context_mask=[context], target_mask=[masked])
        F.l1_loss(output.predictor_output.last_hidden_state, target).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update_teacher(teacher, model.encoder, TEACHER_MOMENTUM)

    return step


def videomae_step(options: argparse.Namespace) -> Step:
    """Tong et al. 2022: reconstruct the pixels of 90% of the tubes."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    shape = _backbone_shape(options)
    config = VideoMAEConfig(
        image_size=options.size,
        num_frames=options.frames,
        hidden_size=shape.embed_dim,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.embed_dim,
        decoder_hidden_size=shape.embed_dim // 2,
        decoder_num_attention_heads=max(1, shape.heads // 2),
        decoder_intermediate_size=2 * shape.embed_dim,
    )
    model = VideoMAEForPreTraining(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    clips = torch.randn(options.batch, options.frames, 3, options.size, options.size)
    patches = (options.size // 16) ** 2
    tubes = torch.randperm(patches) < round(0.9 * patches)
    masked = tubes.repeat(options.frames // 2).expand(options.batch, -1)

    def step() -> None:
        model(clips, bool_masked_pos=masked).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


class _Shape(NamedTuple):
    embed_dim: int
    depth: int
    heads: int


def _backbone_shape(options: argparse.Namespace) -> _Shape:
    student = build_pretraining(step_config(options, []).model(), 0).student
    blocks: Any = student.blocks
    return _Shape(student.dim, len(blocks), blocks[0].attn.num_heads)


def build_step(name: str, options: argparse.Namespace) -> Step:
    """The step of this name: a key of MOFORE, "passes of KEY", "forward of KEY", or a baseline."""
    torch.manual_seed(0)
    if name in MOFORE:
        return TrainingStep(step_config(options, [*MOFORE[name], *options.overrides]))
    if name.startswith(("passes of ", "forward of ")):
        part, _, recipe = name.partition(" of ")
        config = step_config(options, [*MOFORE[recipe], *options.overrides])
        return mofore_passes(config, backward=part == "passes")
    return vjepa2_step(options) if name == VJEPA2 else videomae_step(options)
