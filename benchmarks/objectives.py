"""Training objectives that share one backbone: MoFore, the baselines and a supervised ceiling.

Each objective is a module. Its `loss(batch, labels)` is minimised, its `encoder` is evaluated, and
`update_ema(momentum)` moves its teacher, if it has one. The baselines follow their papers in what
they predict and how; their sizes are those of the backbone at hand.
"""

import copy

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from benchmarks.masks import block_masks, mask_indices, random_masks
from mofore.config import PretrainConfig
from mofore.models.ema import update_teacher
from mofore.models.encoder import VideoEncoder, gather_tokens
from mofore.models.losses import info_nce, normalise
from mofore.models.objective import Pretraining
from mofore.models.positions import sincos_1d, sincos_2d, to_tubelets
from mofore.types import Batch


class Objective(nn.Module):
    """A student, and an EMA teacher if the method has one."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.student = VideoEncoder(config.backbone, config.data.frames, config.data.size)

    @property
    def encoder(self) -> VideoEncoder:
        """The encoder that is evaluated: the teacher, or the student of a method without one."""
        return getattr(self, "teacher", self.student)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        """Scalar. labels: i64 [B]; only the supervised objective uses them."""
        raise NotImplementedError

    def update_ema(self, momentum: float) -> None:
        """Move the teacher; called after each optimizer step."""
        if hasattr(self, "teacher"):
            update_teacher(self.teacher, self.student, torch.tensor(1 - momentum))

    def add_teacher(self) -> None:
        """Start the teacher as a copy of the student."""
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()


class Forecasting(Objective):
    """MoFore's own objective, in the given configuration."""

    def __init__(self, config: PretrainConfig) -> None:
        nn.Module.__init__(self)
        self.model = Pretraining(config.model())

    @property
    def encoder(self) -> VideoEncoder:
        return self.model.teacher

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        targets = self.model.encode_targets(batch)
        return self.model(batch, targets, targets.keys).total

    def update_ema(self, momentum: float) -> None:
        update_teacher(self.model.teacher, self.model.student, torch.tensor(1 - momentum))


class Supervised(Objective):
    """Cross-entropy on the mean token of context and target clips: an upper bound."""

    def __init__(self, config: PretrainConfig, classes: int) -> None:
        super().__init__(config)
        self.head = nn.Linear(self.student.dim, classes)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        logits = self.head(self.student.embed(both_clips(batch)))
        return F.cross_entropy(logits, labels.repeat(2), label_smoothing=0.1)


class MaskedModelling(Objective):
    """Predict something at the masked tokens of a clip from its visible tokens.

    Context and target clips are treated alike. The decoder is as wide and deep as MoFore's
    forecaster.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        dim, depth = config.forecaster.dim, config.forecaster.depth
        self.steps = config.data.frames // config.backbone.tubelet_size
        self.side = config.data.size // config.backbone.patch_size
        positions = sincos_1d(self.steps, dim)[:, None] + sincos_2d(self.side, dim)[None]
        self.positions = nn.Parameter(positions.flatten(0, 1)[None])
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.project_in = nn.Linear(self.student.dim, dim)
        blocks = [Block(dim, config.forecaster.heads, qkv_bias=True) for _ in range(depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(dim))

    def predict_masked(self, clips: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """f32 [B, H, d] at the tokens `masked` i64 [B, H], from the tokens `visible` i64 [B, M]."""
        tokens = self.project_in(self.student(clips, visible))
        tokens = tokens + gather_tokens(self.positions, visible)
        queries = self.mask_token + gather_tokens(self.positions, masked)
        return self.decoder(torch.cat([tokens, queries], dim=1))[:, visible.shape[1] :]

    def tube_indices(self, patches: Tensor) -> Tensor:
        """Patches of a frame i64 [B, n] -> tokens i64 [B, T * n]: these patches at all times."""
        offsets = torch.arange(self.steps).view(1, -1, 1) * self.side**2
        return (offsets + patches[:, None, :]).flatten(1)


class VideoMAE(MaskedModelling):
    """Tong et al. 2022: reconstruct the pixels of 90% of the tubes (MSE).

    The pixels are normalised by tubelet and channel.
    """

    MASK_RATIO = 0.9

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        pixels = 3 * config.backbone.tubelet_size * config.backbone.patch_size**2
        self.to_pixels = nn.Linear(config.forecaster.dim, pixels)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        clips = both_clips(batch)
        patches = random_masks(len(clips), self.side, 1 - self.MASK_RATIO)
        visible, masked = map(self.tube_indices, patches)
        predicted = self.to_pixels(self.predict_masked(clips, visible, masked))
        clips = (clips - self.student.mean) / self.student.std
        tubelets = to_tubelets(clips, self.student.tubelet_size, self.student.patch_size).flatten(
            1, 2
        )
        target = normalise(gather_tokens(tubelets, masked).unflatten(2, (3, -1))).flatten(2)
        return F.mse_loss(predicted, target)


class VJEPA(MaskedModelling):
    """Bardes et al. 2024: predict an EMA encoder's masked tokens from the visible ones (L1).

    Two masks per clip, each of blocks that span all times.
    """

    MASKS = ((8, 0.15), (2, 0.7))  # (number of blocks, share of the frame that each covers)

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.add_teacher()
        self.project_out = nn.Linear(config.forecaster.dim, self.student.dim)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        clips = both_clips(batch)
        with torch.no_grad():
            targets = normalise(self.teacher(clips).float())
        losses = []
        for patches in self.draw_masks(len(clips)):
            visible, masked = map(self.tube_indices, patches)
            predicted = self.project_out(self.predict_masked(clips, visible, masked))
            losses.append(F.l1_loss(predicted, gather_tokens(targets, masked)))
        return torch.stack(losses).mean()

    def draw_masks(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """(visible, masked) patches of each mask, i64 [B, M] and i64 [B, H]."""
        return [
            mask_indices(block_masks(batch, self.side, count, area)) for count, area in self.MASKS
        ]


class VJEPARandomTubes(VJEPA):
    """V-JEPA with one mask of random tubes per clip: blocks are coarse on a grid of 4 x 4."""

    VISIBLE_RATIO = 0.25

    def draw_masks(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        return [random_masks(batch, self.side, self.VISIBLE_RATIO)]


class MoCoV3(Objective):
    """Chen et al. 2021: symmetric InfoNCE between two clips of a video.

    Projector and predictor are BYOL's. MoCo v3's own heads, which have batch norm after their
    outputs too, stayed at chance here.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.project = mlp(self.student.dim)
        self.add_teacher()
        # Not in eval mode: its batch norm uses the statistics of the batch.
        self.teacher_project = copy.deepcopy(self.project).requires_grad_(False)
        self.predict = mlp(self.student.dim)

    def queries_and_keys(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Queries of the student and keys of the teacher, f32 [2 B, D]; the key of a clip is that
        of the other clip of its video.
        """
        clips = both_clips(batch)
        queries = self.predict(self.project(self.student.embed(clips)))
        with torch.no_grad():
            keys = self.teacher_project(self.teacher.embed(clips.roll(len(batch.context), 0)))
        return queries, keys

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        positives = torch.arange(len(batch.context))
        halves = zip(*(part.chunk(2) for part in self.queries_and_keys(batch)), strict=True)
        temperature = self.config.loss.temperature
        losses = [info_nce(query, key, positives, temperature)[0] for query, key in halves]
        return torch.stack(losses).sum() * temperature

    def update_ema(self, momentum: float) -> None:
        super().update_ema(momentum)
        update_teacher(self.teacher_project, self.project, torch.tensor(1 - momentum))


class BYOL(MoCoV3):
    """Grill et al. 2020, for video Feichtenhofer et al. 2021: two clips predict each other."""

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        queries, keys = self.queries_and_keys(batch)
        return 2 - 2 * F.cosine_similarity(queries, keys).mean()


def both_clips(batch: Batch) -> Tensor:
    """u8 [2 B, C, T, H, W]: contexts, then targets."""
    return torch.cat([batch.context, batch.targets[:, 0]])


def mlp(dim: int) -> nn.Sequential:
    """BYOL's projector and predictor, at four times the width of the encoder."""
    return nn.Sequential(
        nn.Linear(dim, 4 * dim), nn.BatchNorm1d(4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)
    )


BASELINES = {
    "VideoMAE": VideoMAE,
    "V-JEPA": VJEPA,
    "V-JEPA, random tubes": VJEPARandomTubes,
    "MoCo v3": MoCoV3,
    "BYOL": BYOL,
}
