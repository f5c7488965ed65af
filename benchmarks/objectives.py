"""Ways to train one backbone from the same batches: ours in any configuration, the alternatives, and with labels.

Each is a module whose `loss(batch, labels)` is minimised and whose `encoder` is evaluated; `after(momentum)` moves
its teacher, where it has one. The alternatives follow their papers in what they predict and how; sizes are those of
the backbone at hand.
"""

import copy

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from benchmarks.masks import blocks, parted, scattered
from mofore.config import PretrainConfig
from mofore.ema import update_teacher
from mofore.losses import info_nce, normalise
from mofore.models.encoder import VideoEncoder, pick
from mofore.models.positions import sincos, sincos_space, to_tubelets
from mofore.pretraining import Pretraining
from mofore.types import Batch


class Objective(nn.Module):
    """A student, and a teacher where the paper has one."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.student = VideoEncoder(config.backbone, config.data.frames, config.data.size)

    @property
    def encoder(self) -> VideoEncoder:
        """What is evaluated."""
        return getattr(self, "teacher", self.student)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        raise NotImplementedError

    def after(self, momentum: float) -> None:
        """After each update."""
        if hasattr(self, "teacher"):
            update_teacher(self.teacher, self.student, momentum)

    def make_teacher(self) -> None:
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()


class Forecasting(Objective):
    """Ours."""

    def __init__(self, config: PretrainConfig) -> None:
        nn.Module.__init__(self)
        self.whole = Pretraining(config.model())

    @property
    def encoder(self) -> VideoEncoder:
        return self.whole.teacher

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        targets = self.whole.teach(batch)
        return self.whole(batch, targets, targets.keys).total

    def after(self, momentum: float) -> None:
        update_teacher(self.whole.teacher, self.whole.student, momentum)


class Supervised(Objective):
    """The ceiling: cross-entropy on the mean token of context and target, each by itself."""

    def __init__(self, config: PretrainConfig, classes: int) -> None:
        super().__init__(config)
        self.head = nn.Linear(self.student.dim, classes)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        clips = both(batch)
        return F.cross_entropy(self.head(self.student.embed(clips)), labels.repeat(2), label_smoothing=0.1)


class Masked(Objective):
    """From the tokens of a clip that are seen, something at the places of those that are not. Context and target are
    clips as any other.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        dim = config.forecaster.dim
        self.steps, self.side = (
            config.data.frames // config.backbone.tubelet,
            config.data.size // config.backbone.patch,
        )
        places = (sincos(self.steps, dim)[:, None] + sincos_space(self.side, dim)[None]).flatten(0, 1)[None]
        self.places, self.mask = nn.Parameter(places), nn.Parameter(torch.zeros(1, 1, dim))
        self.narrow = nn.Linear(self.student.dim, dim)
        blocks = [Block(dim, config.forecaster.heads, qkv_bias=True) for _ in range(config.forecaster.depth)]
        self.decoder = nn.Sequential(*blocks, nn.LayerNorm(dim))  # as wide and deep as our forecaster

    def fill(self, clips: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
        """f32 [B, H, d] at the places `hidden` i64 [B, H], from the tokens at `kept` i64 [B, M]."""
        tokens = self.narrow(self.student(clips, kept)) + pick(self.places, kept)
        queries = self.mask + pick(self.places, hidden)
        return self.decoder(torch.cat([tokens, queries], dim=1))[:, kept.shape[1] :]

    def tubes(self, places: Tensor) -> Tensor:
        """i64 [B, n] places of a frame -> i64 [B, T * n] tokens: these places at all times."""
        times = torch.arange(self.steps).view(1, -1, 1) * self.side**2
        return (times + places[:, None, :]).flatten(1)


class VideoMAE(Masked):
    """Tong et al. 2022: 90% of the tubes are masked, their pixels reconstructed (MSE), each tubelet's normalised by
    channel.
    """

    MASKED = 0.9

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.pixels = nn.Linear(config.forecaster.dim, 3 * config.backbone.tubelet * config.backbone.patch**2)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        clips = both(batch)
        kept, hidden = map(self.tubes, scattered(len(clips), self.side, 1 - self.MASKED))
        out = self.pixels(self.fill(clips, kept, hidden))
        clips = (clips - self.student.mean) / self.student.std
        tubelets = pick(to_tubelets(clips, self.student.t, self.student.p).flatten(1, 2), hidden)
        wanted = normalise(tubelets.unflatten(2, (3, -1))).flatten(2)
        return F.mse_loss(out, wanted)


class VJEPA(Masked):
    """Bardes et al. 2024: from a part of a clip's tokens, what an EMA encoder sees at the others (L1). Two masks a clip,
    each of blocks through all times.
    """

    MASKS = ((8, 0.15), (2, 0.7))  # blocks, and the share of a frame that each hides

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.make_teacher()
        self.wide = nn.Linear(config.forecaster.dim, self.student.dim)

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        clips = both(batch)
        with torch.no_grad():
            wanted = normalise(self.teacher(clips).float())
        losses = []
        for places in self.masks(len(clips)):
            kept, hidden = map(self.tubes, places)
            losses.append(F.l1_loss(self.wide(self.fill(clips, kept, hidden)), pick(wanted, hidden)))
        return torch.stack(losses).mean()

    def masks(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        """Of each, the places that are seen and those that are hidden."""
        return [parted(blocks(batch, self.side, count, share)) for count, share in self.MASKS]


class RandomPlaces(VJEPA):
    """V-JEPA with one mask a clip, of random places: its blocks are coarse in the few places that a clip has here."""

    SEEN = 0.25

    def masks(self, batch: int) -> list[tuple[Tensor, Tensor]]:
        return [scattered(batch, self.side, self.SEEN)]


class Instance(Objective):
    """Chen et al. 2021 (MoCo v3): two clips of a video find each other (InfoNCE). Its own heads, with batch norm after
    their outputs too, kept it at chance here (lines `trial: MoCo v3, its own heads`), so they are those of BYOL.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.project = mlp(self.student.dim)
        self.make_teacher()
        self.teacher_project = copy.deepcopy(self.project).requires_grad_(
            False
        )  # its batch norm stays in training
        self.predict = mlp(self.student.dim)

    def queries_and_keys(self, batch: Batch) -> tuple[Tensor, Tensor]:
        clips = both(batch)
        queries = self.predict(self.project(self.student.embed(clips)))
        with torch.no_grad():
            keys = self.teacher_project(self.teacher.embed(clips.roll(len(batch.context), 0)))
        return queries, keys

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        own = torch.arange(len(batch.context))
        halves = zip(*(part.chunk(2) for part in self.queries_and_keys(batch)), strict=True)
        temperature = self.config.loss.temperature
        losses = [info_nce(query, key, own, temperature)[0] for query, key in halves]
        return torch.stack(losses).sum() * temperature

    def after(self, momentum: float) -> None:
        super().after(momentum)
        update_teacher(self.teacher_project, self.project, momentum)


class BYOL(Instance):
    """Grill et al. 2020, as Feichtenhofer et al. 2021 for video: two clips predict each other, without negatives."""

    def loss(self, batch: Batch, labels: Tensor) -> Tensor:
        queries, keys = self.queries_and_keys(batch)
        return 2 - 2 * F.cosine_similarity(queries, keys).mean()


def both(batch: Batch) -> Tensor:
    """u8 [2 B, C, T, H, W]: contexts, then targets."""
    return torch.cat([batch.context, batch.targets[:, 0]])


def mlp(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.BatchNorm1d(4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))


ALTERNATIVES = {
    "VideoMAE": VideoMAE,
    "V-JEPA": VJEPA,
    "V-JEPA, random places": RandomPlaces,
    "MoCo v3": Instance,
    "BYOL": BYOL,
}
