"""The steps that benchmarks.step times: ours, and those of others through the package that has them."""

import argparse
import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mofore.bad_updates import BadUpdatePolicy
from mofore.collapse_monitor import CollapseMonitor
from mofore.config import PretrainConfig, compose
from mofore.models.ema import update_teacher
from mofore.models.objective import build_pretraining
from mofore.parallel.engine import start_ranks
from mofore.resume import build, empty_batch
from mofore.train import update
from mofore.types import Batch

Step = Callable[[], object]
CHECKPOINTING = ["backbone.grad_checkpoint_every=1"]
OURS: dict[str, list[str]] = {
    "ours, default recipe": [],
    "ours, all tokens": ["data.targets=1", "data.token_keep_ratio=1"],
    "ours, all tokens, checkpointing": [
        "data.targets=1",
        "data.token_keep_ratio=1",
        *CHECKPOINTING,
    ],
    "ours, a quarter of the tokens": ["data.targets=1", "data.token_keep_ratio=0.25"],
    "ours, all tokens, two targets": ["data.targets=2", "data.token_keep_ratio=1"],
}
OTHERS = ("V-JEPA 2 (transformers)", "VideoMAE (transformers), 90% masked")


def config_of(options: argparse.Namespace, words: list[str]) -> PretrainConfig:
    fixed = [
        f"backbone={options.backbone}",
        f"data.frames={options.frames}",
        f"data.size={options.size}",
    ]
    return compose(
        PretrainConfig, [*fixed, f"global_batch={options.batch}", "data.manifest=none", *words]
    )


def noise(config: PretrainConfig) -> Batch:
    """A batch of the run's shapes: noise, gaps of half a second, and the tokens that are kept."""
    batch = empty_batch(config, config.global_batch, torch.device("cpu"))
    clips = [torch.randint_like(part, 0, 256) for part in batch[:2]]
    kept = batch.visible
    if config.data.token_keep_ratio < 1:
        orders = torch.stack([torch.randperm(config.tokens) for _ in range(config.global_batch)])
        kept = orders[:, : round(config.data.token_keep_ratio * config.tokens)].sort(dim=1).values
    return Batch(clips[0], clips[1], batch.gaps + 0.5, batch.rows, kept)


def our_step(config: PretrainConfig) -> Step:
    """The whole step as the loop makes it, through DeepSpeed: teacher, student, forecaster, update, EMA."""
    engine, batch, guard = (
        build(config, None, start_ranks(600)),
        noise(config),
        BadUpdatePolicy(config.bad_updates),
    )

    def step() -> None:
        losses, _, norm = update(engine, [batch], guard)
        guard.note(float(losses.total), norm)
        update_teacher(engine.module.teacher, engine.module.student, 0.996)

    return step


def look(config: PretrainConfig) -> Step:
    """One look for collapse at the clips that it holds."""
    engine = build(config, None, start_ranks(600))
    clips = torch.randint(
        0, 256, (config.collapse.videos, 2, *noise(config).context.shape[1:]), dtype=torch.uint8
    )
    watchdog = CollapseMonitor(config.collapse, clips, config.global_batch)
    return lambda: watchdog.look(engine)


def our_passes(config: PretrainConfig, backward: bool = True) -> Step:
    """Forward and backward alone, of the bare module; gradients are made once, as a run's are. The step returns the
    loss, which without a backward keeps every activation that one would need.
    """
    model, batch = build_pretraining(config.model(), 0), noise(config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def step() -> torch.Tensor:
        targets = model(batch)
        loss = model(batch, targets, targets.keys).total
        if backward:
            loss.backward()
        return loss

    return step


def vjepa_step(options: argparse.Namespace) -> Step:
    """Assran et al. 2025: a context of tokens forecasts the others as an EMA encoder sees them (L1).

    The published predictor (12 blocks, 384 wide). The package's encoder sees all tokens and the predictor the
    context's; an eighth short of all are targets, as its multi-block masks leave.
    """
    from transformers import VJEPA2Config, VJEPA2Model

    shape = _backbone(options)
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
    context, target = order[:, : tokens // 8].sort().values, order[:, tokens // 8 :].sort().values

    def step() -> None:
        with torch.no_grad():
            seen = F.layer_norm(teacher(clips).last_hidden_state, (shape.embed_dim,))
            wanted = seen.gather(1, target[..., None].expand(-1, -1, seen.shape[-1]))
        out = model(
            clips, context_mask=[context], target_mask=[target]
        ).predictor_output.last_hidden_state
        F.l1_loss(out, wanted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update_teacher(teacher, model.encoder, 0.996)

    return step


def videomae_step(options: argparse.Namespace) -> Step:
    """Tong et al. 2022: 90% of the tubes are masked and their pixels reconstructed."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    shape = _backbone(options)
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
    places = (options.size // 16) ** 2
    tube = torch.randperm(places) < round(0.9 * places)
    masked = tube.repeat(options.frames // 2).expand(options.batch, -1)

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


def _backbone(options: argparse.Namespace) -> _Shape:
    student = build_pretraining(config_of(options, []).model(), 0).student
    blocks: Any = student.blocks
    return _Shape(student.dim, len(blocks), blocks[0].attn.num_heads)


def build_step(name: str, options: argparse.Namespace) -> Step:
    torch.manual_seed(0)
    if name in OURS:
        return our_step(config_of(options, [*OURS[name], *options.words]))
    if name.startswith(("passes of ", "forward of ")):
        part, _, ours = name.partition(" of ")
        return our_passes(
            config_of(options, [*OURS[ours], *options.words]), backward=part == "passes"
        )
    return vjepa_step(options) if name.startswith("V-JEPA") else videomae_step(options)
