"""Recipes of benchmarks.learning: name -> overrides on top of experiment=demo -> objective."""

from benchmarks.objectives import BASELINES, Forecasting, Objective, Supervised
from benchmarks.variants import VARIANTS, Variant
from mofore.config import PretrainConfig
from mofore.evaluation.encoders import frame_differences, pixels

REFERENCE = "MoFore"
# Recipes that train nothing; the untrained encoder is the reference at its initialisation.
UNTRAINED = {"untrained": None, "pixels": pixels, "frame differences": frame_differences}
FORECAST_QUERY = ["loss.query=forecast"]
RECIPES: dict[str, list[str]] = {
    REFERENCE: [],
    "MoFore as published": [
        "backbone.attention=per_frame",
        "backbone.tubelet_size=1",
        "forecaster.kind=mlp",
        "forecaster.dim=384",
        "loss={regression: mse, normalise_targets: false, contrastive_weight: 1.0, "
        "temperature: 0.1}",
        *FORECAST_QUERY,
        "teacher={momentum: 0.7, final_momentum: 0.7}",
        "optimizer.lr=1e-3",
    ],
    # docs/what-it-learns.md has what was tried on the baselines.
    **dict.fromkeys(BASELINES, ["optimizer.lr=1e-3"]),
    # An upper bound, so its views have no static noise either.
    "supervised": ["optimizer.lr=1e-3", "data.augment.static_noise=0"],
    **{name: [] for name in UNTRAINED},
}
SINGLE_CHANGES: dict[str, list[str]] = {
    "context query": ["loss.query=context"],
    "forecast query": FORECAST_QUERY,
    "half of the tokens": ["data.token_keep_ratio=0.5"],
    "two targets": ["data.targets=2"],
    "gaps of 0 to 0.3 s": ["data.gap.min=0", "data.gap.max=0.3"],
    "gaps of 0.6 to 1.2 s": ["data.gap.min=0.6", "data.gap.max=1.2"],
    "log-uniform gaps": ["data.gap={distribution: log_uniform, min: 0.1, max: 1.2}"],
    "no contrastive loss": ["loss.contrastive_weight=0"],
    "contrastive weight 1": ["loss.contrastive_weight=1"],
    "contrastive weight 20": ["loss.contrastive_weight=20"],
    "temperature 0.05": ["loss.temperature=0.05"],
    "temperature 0.2": ["loss.temperature=0.2"],
    "batch size 64": ["global_batch=64"],
    "teacher momentum 0.99": ["teacher.momentum=0.99"],
    "teacher momentum 0.8": ["teacher.momentum=0.8"],
    "forecaster depth 3": ["forecaster.depth=3"],
    "forecaster width 192": ["forecaster.dim=192", "forecaster.heads=6"],
    "pooled MLP forecaster": ["forecaster.kind=mlp", "forecaster.dim=384"],
    "targets not normalised": ["loss.normalise_targets=false"],
}
# A variant computes its own InfoNCE. With query=forecast the library's projection head, which the
# variant would not use, is not built.
ABLATIONS: dict[str, list[str]] = {
    REFERENCE: [],
    **{f"MoFore: {name}": overrides for name, overrides in SINGLE_CHANGES.items()},
    **dict.fromkeys(VARIANTS, FORECAST_QUERY),
    "MoFore: static frames of other videos": [*FORECAST_QUERY, "data.augment.static_noise=0"],
}
OVERRIDES = RECIPES | ABLATIONS


def build_objective(name: str, config: PretrainConfig, classes: int) -> Objective:
    """The objective of a recipe; the untrained baselines get MoFore's."""
    if name == "supervised":
        return Supervised(config, classes)
    if name in VARIANTS:
        return Variant(config, VARIANTS[name])
    return BASELINES.get(name, Forecasting)(config)
