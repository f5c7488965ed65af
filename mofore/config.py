"""YAML and overrides -> plain dataclasses. The only user of hydra.

configs/*.yaml + "key=value" -> hydra composes against the dataclasses below -> OmegaConf.to_object, where
each dataclass checks itself -> objects with attributes; no DictConfig goes further than this file.
"""

import difflib
import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import configs
from mofore.commit import CheckpointConfig
from mofore.data.dataset import DataConfig
from mofore.ema import TeacherConfig
from mofore.engine import EngineConfig
from mofore.errors import UserError
from mofore.guard import GuardConfig
from mofore.models.encoder import Attention, BackboneConfig, check_tubelets
from mofore.models.forecaster import ForecasterConfig
from mofore.optim import OptimizerConfig
from mofore.pretraining import LossConfig, ModelConfig
from mofore.watchdog import WatchConfig

FOLDER = Path(configs.__file__).parent


@dataclass
class PretrainConfig:
    """A run. `mofore pretrain KEY=VALUE ...` sets any of these."""

    run_dir: str = "runs/pretrain"  # where everything of the run lies; a run that stands there goes on
    steps: int = 10000
    seed: int = 0
    global_batch: int = 64  # videos a step, over all ranks
    micro_batch: int | None = None  # videos a rank takes at once; None: its whole share
    workers: int = 2  # processes a rank that decode; 0 decodes in the rank itself
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.global_batch) < 1 or self.workers < 0:
            raise UserError(
                f"steps={self.steps} and global_batch={self.global_batch} must be at least 1, "
                f"workers={self.workers} at least 0."
            )
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be at least 0.")
        if self.global_batch < 2 and self.loss.contrast > 0:
            raise UserError("global_batch=1 leaves InfoNCE no negatives: give 2 or more.")
        check_tubelets(self.backbone, self.data.frames, self.data.size, self.data.size)
        if self.data.keep < 1 and self.backbone.attention is Attention.per_frame:
            raise UserError(
                f"data.keep={self.data.keep} drops tokens of the clip, which backbone.attention=per_frame sees frame "
                "by frame: give data.keep=1 or backbone.attention=joint."
            )

    @property
    def tokens(self) -> int:
        """Of a clip: N."""
        side = self.data.size // self.backbone.patch
        return self.data.frames // self.backbone.tubelet * side * side

    def model(self) -> ModelConfig:
        return ModelConfig(self.data.frames, self.data.size, self.backbone, self.forecaster, self.loss)

    def cut_batch(self, world: int) -> tuple[int, int]:
        """(micro-batch of a rank, micro-batches a step). UserError where the global batch does not divide."""
        share = self.global_batch // world
        micro = share if self.micro_batch is None else self.micro_batch
        if share == 0 or self.global_batch % world or micro < 1 or share % micro:
            raise UserError(
                f"global_batch={self.global_batch} does not divide into micro-batches of {micro} on {world} "
                f"rank(s): make it a multiple of micro_batch * ranks."
            )
        return micro, share // micro


@dataclass
class EvaluateConfig:
    """An evaluation of a run's newest checkpoint. `mofore evaluate run=RUN KEY=VALUE ...`."""

    run: str = MISSING  # run folder
    manifest: str | None = None  # None: the manifest that the run was trained on
    views: int = 4  # clips of a video, evenly spread; its embedding is their mean
    batch: int = 16  # videos at once
    workers: int = 2
    k: int = 20  # neighbours of kNN
    temperature: float = 0.07  # of their weights
    resamples: int = 1000  # of the bootstrap
    seed: int = 0
    force: bool = False  # extract the features again even where they are cached

    def __post_init__(self) -> None:
        if self.views < 2:
            raise UserError(f"views={self.views}: stability compares times of a video, give views=2 or more.")
        if (
            min(self.batch, self.k, self.resamples) < 1
            or min(self.workers, self.seed) < 0
            or self.temperature <= 0
        ):
            raise UserError(
                "batch, k and resamples must be at least 1, temperature above 0, workers and seed not below."
            )


T = TypeVar("T")


def compose(kind: type[T], overrides: list[str]) -> T:
    """The configuration that configs/NAME.yaml and the overrides make; NAME is the class's, without Config.

    Raises UserError for an unknown key, a wrong type or an impossible combination, naming it.
    """
    name = kind.__name__.removesuffix("Config").lower()
    for word in overrides:
        if (
            word[:1] in "+~="
        ):  # hydra's words to add and remove keys, which a typed configuration has no use for
            raise UserError(f"configuration: {word}: write KEY=VALUE with a key that exists.")
    ConfigStore.instance().store(name=f"{name}_schema", node=kind)
    try:
        with hydra.initialize_config_dir(str(FOLDER), version_base="1.3", job_name=name):
            composed = hydra.compose(name, overrides)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command.")
        return OmegaConf.to_object(composed)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as reason:
        raise UserError(_explain(reason, kind)) from reason


def expand(words: list[str]) -> list[tuple[list[str], list[str]]]:
    """Every combination of words like `backbone=vit_tiny,vit_small`, in order: (the words that are common to all, the
    words of this combination). UserError where a word has no such form or none names more than one value.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(words)
    except HydraException as reason:
        raise UserError(_explain(reason, PretrainConfig)) from reason
    common = [word for word, each in zip(words, parsed, strict=True) if not each.is_sweep_override()]
    varied = [
        [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
        for each in parsed
        if each.is_sweep_override()
    ]
    if not varied:
        raise UserError("a sweep needs a key with several values: backbone=vit_tiny,vit_small.")
    return [(common, list(combination)) for combination in itertools.product(*varied)]


def _explain(reason: Exception, kind: type) -> str:
    """One sentence of hydra's or omegaconf's many, and the nearest key that exists."""
    cause: BaseException = reason
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, UserError):  # a dataclass checked itself
        return str(cause)
    said = f"{cause}".strip() or str(reason)
    key = str(getattr(cause, "full_key", None) or "")
    text = " ".join(
        line.strip()
        for line in said.splitlines()
        if not line.strip().startswith(("object_type", "full_key", "reference_type"))
    )
    text = text.split(" Config search path")[0]
    close = (
        difflib.get_close_matches(key, list(flatten(asdict_plain(kind()))), n=1, cutoff=0.6) if key else []
    )
    hint = f" Did you mean {close[0]}?" if close and close[0] != key else ""
    return f"configuration: {key + ': ' if key and key not in text else ''}{text}{hint}"


def describe(kind: type) -> str:
    """Every key of a configuration with its default and what its comment in the source says, a line each."""
    lines = [f"{key:<30} {default!s:<22} {comment}".rstrip() for key, default, comment in _keys(kind(), "")]
    groups = [f"{folder.name}=" + "|".join(sorted(path.stem for path in folder.glob("*.yaml")))
              for folder in sorted(FOLDER.iterdir()) if folder.name in ("backbone", "experiment")]  # fmt: skip
    return "\n".join(lines + (["", "whole groups at once:", *groups] if kind is PretrainConfig else []))


def _keys(config: Any, above: str) -> Iterator[tuple[str, Any, str]]:
    comments = dict(re.findall(r"^    (\w+): [^#\n]*# (.*)$", inspect.getsource(type(config)), re.MULTILINE))
    for each in fields(config):
        value: Any = getattr(config, each.name)
        if is_dataclass(value):
            yield from _keys(value, f"{above}{each.name}.")
        else:
            said = comments.get(each.name, "")
            if isinstance(value, Enum):
                value, said = value.name, f"{'|'.join(type(value).__members__)}  {said}"
            yield f"{above}{each.name}", value, said


def asdict_plain(config: Any) -> dict[str, Any]:
    """Nested plain dictionary of a configuration: enums by name."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value.name if isinstance(value, Enum) else value

    return plain(asdict(config))


def flatten(nested: dict[str, Any], above: str = "") -> dict[str, Any]:
    """{"data": {"size": 1}} -> {"data.size": 1}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def write_config(config: PretrainConfig, path: Path) -> None:
    path.write_text(yaml.safe_dump(asdict_plain(config), sort_keys=False))


def read_config(path: Path) -> PretrainConfig:
    """The configuration that `write_config` wrote. UserError where there is none, or it does not fit."""
    if not path.is_file():
        raise UserError(f"{path.parent} is no run folder: it has no {path.name}.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), OmegaConf.load(path))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as reason:
        raise UserError(f"{path}: {_explain(reason, PretrainConfig)}") from reason
