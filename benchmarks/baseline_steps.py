"""The training steps that benchmarks.step and benchmarks.gpu time.

MoFore's, and those of V-JEPA 2 and VideoMAE in Hugging Face transformers.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training_step import RepeatedStep, StepShape
from mofore.collapse_monitor import CollapseMonitor
from mofore.compilation import MAX_VARIANTS
from mofore.config import PretrainConfig
from mofore.models.ema import update_teacher
from mofore.models.objective import build_meta_pretraining, build_pretraining
from mofore.parallel.engine import start_ranks
from mofore.precision import Precision, autocast
from mofore.profiling import random_batch
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


def collapse_measurement(config: PretrainConfig) -> Step:
    """One measurement of the collapse monitor."""
    engine = build_training_engine(config, None, start_ranks(config.engine))
    clip = (3, config.data.frames, config.data.size, config.data.size)
    clips = torch.randint(0, 256, (config.collapse.videos, 2, *clip), dtype=torch.uint8)
    monitor = CollapseMonitor(config.collapse, clips, config.global_batch)
    return lambda: monitor.measure(engine)


def mofore_passes(config: PretrainConfig, backward: bool = True) -> Step:
    """Forward, and backward unless disabled, of the bare module, without an optimizer.

    Gradients are allocated once, as in a run. The step returns the loss. Without backward, the loss
    holds every activation that backward would need.
    """
    model = build_pretraining(config.model(), 0)
    batch = random_batch(config, config.global_batch, torch.device("cpu"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def step() -> torch.Tensor:
        targets = model(batch)
        loss = model(batch, targets, targets.keys).total
        if backward:
            loss.backward()
        return loss

    return step


class BaselineStep:
    """Each call makes one step: forward, backward, clipping, AdamW, and `after_update`.

    loss: the scalar loss of one step, computed under autocast if the precision is bf16. layers: the
    transformer blocks, which `compile` compiles in place, each alone, as MoFore's are.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[], Tensor],
        layers: Sequence[nn.Module],
        precision: Precision,
        after_update: Step = lambda: None,
    ) -> None:
        self.model, self.loss, self.layers = model, loss, layers
        self.precision, self.after_update = precision, after_update
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def __call__(self) -> None:
        with autocast(self.precision, self.device):
            loss = self.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.after_update()

    def compile(self) -> None:
        torch._dynamo.config.recompile_limit = MAX_VARIANTS
        for layer in self.layers:
            layer.compile(dynamic=False)


def vjepa2_step(shape: StepShape, device: torch.device, precision: Precision) -> BaselineStep:
    """Assran et al. 2025: predict an EMA encoder's tokens from a context of tokens (L1).

    The published predictor (12 blocks, width 384). The encoder of the package sees all tokens, the
    predictor an eighth of them; the others are targets, as the multi-block masks leave them.
    """
    from transformers import VJEPA2Config, VJEPA2Model

    backbone = _backbone_sizes(shape)
    config = VJEPA2Config(
        crop_size=shape.size,
        frames_per_clip=shape.frames,
        hidden_size=backbone.embed_dim,
        num_hidden_layers=backbone.depth,
        num_attention_heads=backbone.heads,
    )
    model = VJEPA2Model(config).to(device)
    teacher = copy.deepcopy(model.encoder).requires_grad_(False).eval()
    clips = torch.randn(shape.batch, shape.frames, 3, shape.size, shape.size, device=device)
    tokens = shape.frames // 2 * (shape.size // 16) ** 2
    order = torch.randperm(tokens, device=device).expand(shape.batch, -1)
    context, masked = order[:, : tokens // 8].sort().values, order[:, tokens // 8 :].sort().values
    weight = torch.tensor(1 - TEACHER_MOMENTUM, device=device)

    def loss() -> Tensor:
        with torch.no_grad():
            latents = F.layer_norm(teacher(clips).last_hidden_state, (backbone.embed_dim,))
            target = latents.gather(1, masked[..., None].expand(-1, -1, latents.shape[-1]))
        output = model(clips, context_mask=[context], target_mask=[masked])
        return F.l1_loss(output.predictor_output.last_hidden_state, target)

    layers = [*model.encoder.layer, *model.predictor.layer, *teacher.layer]
    return BaselineStep(
        model, loss, layers, precision, lambda: update_teacher(teacher, model.encoder, weight)
    )


def videomae_step(shape: StepShape, device: torch.device, precision: Precision) -> BaselineStep:
    """Tong et al. 2022: reconstruct the pixels of 90% of the tubes."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    backbone = _backbone_sizes(shape)
    config = VideoMAEConfig(
        image_size=shape.size,
        num_frames=shape.frames,
        hidden_size=backbone.embed_dim,
        num_hidden_layers=backbone.depth,
        num_attention_heads=backbone.heads,
        intermediate_size=4 * backbone.embed_dim,
        decoder_hidden_size=backbone.embed_dim // 2,
        decoder_num_attention_heads=max(1, backbone.heads // 2),
        decoder_intermediate_size=2 * backbone.embed_dim,
    )
    model = VideoMAEForPreTraining(config).to(device)
    clips = torch.randn(shape.batch, shape.frames, 3, shape.size, shape.size, device=device)
    patches = (shape.size // 16) ** 2
    tubes = torch.randperm(patches, device=device) < round(0.9 * patches)
    masked = tubes.repeat(shape.frames // 2).expand(shape.batch, -1)
    layers = [*model.videomae.encoder.layer, *model.decoder.decoder_layers]
    return BaselineStep(model, lambda: model(clips, bool_masked_pos=masked).loss, layers, precision)


class _BackboneSizes(NamedTuple):
    embed_dim: int
    depth: int
    heads: int


def _backbone_sizes(shape: StepShape) -> _BackboneSizes:
    student = build_meta_pretraining(shape.config().model()).student
    blocks: Any = student.blocks
    return _BackboneSizes(student.dim, len(blocks), blocks[0].attn.num_heads)


def build_step(name: str, shape: StepShape) -> Step:
    """The step of this name: a key of MOFORE, "passes of KEY", "forward of KEY", or a baseline."""
    torch.manual_seed(0)
    if name in MOFORE:
        return RepeatedStep(shape.config(*MOFORE[name]))
    if name.startswith(("passes of ", "forward of ")):
        part, _, recipe = name.partition(" of ")
        return mofore_passes(shape.config(*MOFORE[recipe]), backward=part == "passes")
    build = vjepa2_step if name == VJEPA2 else videomae_step
    return build(shape, torch.device("cpu"), Precision.fp32)
