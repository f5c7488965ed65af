"""YAML and overrides -> plain dataclasses. The only user of hydra.

configs/*.yaml and "key=value" overrides -> hydra composes them against the dataclasses ->
OmegaConf.to_object, where each dataclass checks itself -> objects with attributes. No DictConfig
leaves this module.
"""

import itertools
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mofore.bad_updates import BadUpdateConfig
from mofore.checkpoint.format import CheckpointConfig
from mofore.collapse_monitor import CollapseConfig
from mofore.config_errors import explain
from mofore.config_yaml import check_texts, dump, load_literally
from mofore.data.dataset import DataConfig
from mofore.data.loader import AUTO, check_workers
from mofore.errors import UserError
from mofore.files import write_text
from mofore.models.backbone import Attention, BackboneConfig, check_tubelets
from mofore.models.ema import TeacherConfig
from mofore.models.forecaster import ForecasterConfig
from mofore.models.losses import LossConfig
from mofore.models.objective import ModelConfig
from mofore.optim import OptimizerConfig
from mofore.parallel.engine_config import EngineConfig
from mofore.quoting import quote_text, split_options, text_keys
from mofore.settings import setting

CONFIG_DIR = Path(__file__).parent / "configs"
FREE_KEYS = "engine.deepspeed."  # any key may follow


@dataclass
class PretrainConfig:
    """One pretraining run."""

    run_dir: str = setting("runs/pretrain", "Run folder. A run that it contains is resumed.")
    steps: int = setting(10000, "Optimizer updates of the whole run.")
    seed: int = setting(0, "Seed of weights, sample order, windows and augmentations.")
    global_batch: int = setting(64, "Videos per step, over all ranks.")
    micro_batch: int | None = setting(
        None, "Videos per rank and forward pass; null takes the rank's whole share at once."
    )
    workers: int | str = setting(
        AUTO, "Decoding processes per rank; auto: from its CPUs; 0 decodes in the rank itself."
    )
    wandb_project: str | None = setting(
        None,
        "Project of Weights & Biases to log to, beside TensorBoard; needs `pip install "
        "mofore[wandb]`.",
    )
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    forecaster: ForecasterConfig = field(default_factory=ForecasterConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    bad_updates: BadUpdateConfig = field(default_factory=BadUpdateConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.global_batch) < 1:
            raise UserError(
                f"steps={self.steps} and global_batch={self.global_batch} must be at least 1."
            )
        check_workers(self.workers)
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be at least 0.")
        if self.global_batch < 2 and self.loss.contrastive_weight > 0:
            raise UserError("global_batch=1 leaves InfoNCE no negatives: give 2 or more.")
        check_tubelets(self.backbone, self.data.frames, self.data.size, self.data.size)
        ratios = {"data": self.data.token_keep_ratio, "teacher": self.teacher.token_keep_ratio}
        for group, ratio in ratios.items():
            if ratio < 1 and self.backbone.attention is Attention.per_frame:
                raise UserError(
                    f"{group}.token_keep_ratio={ratio} drops tokens, which "
                    f"backbone.attention=per_frame does not support: give {group}.token_keep_ratio"
                    "=1 or backbone.attention=joint."
                )

    @property
    def tokens(self) -> int:
        """Tokens per clip: N."""
        side = self.data.size // self.backbone.patch_size
        return self.data.frames // self.backbone.tubelet_size * side * side

    def model(self) -> ModelConfig:
        """The part that decides the shapes of the weights and the losses."""
        return ModelConfig(
            self.data.frames, self.data.size, self.backbone, self.forecaster, self.loss
        )

    def split_batch(self, world_size: int) -> tuple[int, int]:
        """(micro-batch per rank, micro-batches per step).

        UserError if global_batch does not divide.
        """
        share = self.global_batch // world_size
        micro = share if self.micro_batch is None else self.micro_batch
        if share == 0 or self.global_batch % world_size or micro < 1 or share % micro:
            raise UserError(
                f"global_batch={self.global_batch} does not divide into micro-batches of {micro} "
                f"on {world_size} rank(s): make it a multiple of micro_batch * ranks."
            )
        return micro, share // micro


class _UserConfigs(SearchPathPlugin):
    """Puts the user's folder first in hydra's search path."""

    folder: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend("user", f"file://{self.folder.absolute()}")


Plugins.instance().register(_UserConfigs)
T = TypeVar("T")


def compose(kind: type[T], overrides: list[str], config_dir: Path | None = None) -> T:
    """Compose configs/NAME.yaml and the overrides; NAME is the class name without Config.

    A key of the type str takes its value exactly as it stands, or what is between quotes.
    config_dir: a folder of the user's own YAML files, searched before MoFore's.
    Raises UserError for an unknown key, a wrong type or an invalid combination, naming it.
    """
    name = kind.__name__.removesuffix("Config").lower()
    for override in overrides:
        # hydra adds and removes keys with these; our keys are fixed
        if override[:1] in "+~=" or "=" not in override:
            raise UserError(f"configuration: {override}: write KEY=VALUE with an existing key.")
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir}: there is no such folder.")
    texts = text_keys(kind)
    _check_files(overrides, texts, config_dir)
    overrides = [quote_text(each, texts) for each in overrides]
    # DeepSpeed's options are no keys of ours, so hydra must add them.
    overrides = [f"++{each}" if each.startswith(FREE_KEYS) else each for each in overrides]
    ConfigStore.instance().store(name=f"{name}_schema", node=kind)
    _UserConfigs.folder = config_dir
    try:
        _check_mappings(overrides, texts)
        with hydra.initialize_config_dir(str(CONFIG_DIR), version_base="1.3", job_name=name):
            composed = hydra.compose(name, overrides)
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"{missing[0]} is not set: add {missing[0]}=... to the command.")
        return OmegaConf.to_object(composed)  # type: ignore[return-value]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, kind)) from error
    finally:
        _UserConfigs.folder = None


def _check_files(overrides: list[str], texts: dict[str, bool], config_dir: Path | None) -> None:
    """Check the text keys of the user's files that the overrides choose, as in experiment=mine."""
    for group, _, choice in (override.partition("=") for override in overrides):
        path = config_dir and config_dir / group / f"{choice}.yaml"
        if path and "." not in group and path.is_file():
            check_texts(path, group, texts)


def _check_mappings(overrides: list[str], texts: dict[str, bool]) -> None:
    """Raise UserError for data={manifest: 1e3}: hydra reads the text as a number."""
    mappings = [override for override in overrides if "={" in override]
    for parsed in OverridesParser.create().parse_overrides(mappings):
        value = parsed.value()
        values = flatten_dict(value, f"{parsed.key_or_group}.") if isinstance(value, dict) else {}
        for key in texts:
            if isinstance(values.get(key), bool | int | float):
                raise UserError(
                    f"{parsed.input_line}: {key} is a text, and {values[key]} is none: put quotes "
                    f"around it, or write {key}=... on its own."
                )


def expand_sweep(overrides: list[str]) -> list[tuple[list[str], list[str]]]:
    """Every combination of overrides like `backbone=vit_tiny,vit_small`, in order.

    Returns (the overrides common to all, the overrides of this combination) for each. Raises
    UserError if an override cannot be parsed or none has more than one value.
    """
    texts = text_keys(PretrainConfig)
    options = [split_options(each) if _key(each) in texts else _options(each) for each in overrides]
    common = [each[0] for each in options if len(each) == 1]
    varied = [each for each in options if len(each) > 1]
    if not varied:
        raise UserError("A sweep needs a key with several values: backbone=vit_tiny,vit_small.")
    if any(_key(each[0]) == "run_dir" for each in varied):
        raise UserError(
            "run_dir has a comma, but the runs of a sweep share one folder: put quotes around it, "
            "'run_dir=\"runs/a,b\"'."
        )
    return [(common, list(combination)) for combination in itertools.product(*varied)]


def _key(override: str) -> str:
    return override.partition("=")[0]


def _options(override: str) -> list[str]:
    """An override with one value for each of its values in a sweep."""
    try:
        (parsed,) = OverridesParser.create().parse_overrides([override])
    except HydraException as error:
        raise UserError(explain(error, PretrainConfig)) from error
    if not parsed.is_sweep_override():
        return [override]
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]


def to_plain_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dictionaries; enums by name."""
    return to_plain(asdict(config))


def to_plain(value: Any) -> Any:
    """Enums by name, also inside dictionaries."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value.name if isinstance(value, Enum) else value


def flatten_dict(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"size": 1}} -> {"data.size": 1}; an empty dictionary is a value."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        nested_value = isinstance(value, dict) and value
        flat |= flatten_dict(value, f"{prefix}{key}.") if nested_value else {prefix + key: value}
    return flat


def write_config(config: PretrainConfig, path: Path) -> None:
    """Write the resolved configuration as YAML, atomically."""
    write_text(path, to_yaml(config))


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML."""
    return dump(to_plain_dict(config))


def read_config(path: Path) -> PretrainConfig:
    """The configuration that `write_config` wrote. UserError if it is missing or invalid."""
    if not path.is_file():
        raise UserError(f"{path.parent} is not a run folder: it has no {path.name}.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PretrainConfig), load_literally(path))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"{path}: {explain(error, PretrainConfig)}") from error
