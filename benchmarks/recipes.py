"""Names of benchmarks.learning -> words of `mofore pretrain` on top of experiment=demo -> what is trained."""

from benchmarks.objectives import ALTERNATIVES, Forecasting, Objective, Supervised
from benchmarks.variants import VARIANTS, Variant
from evaluation.encoders import frame_differences, pixels
from mofore.config import PretrainConfig

BASELINES = {"untrained": None, "pixels": pixels, "frame differences": frame_differences}
FORECAST_ALONE = ["loss.query=forecast"]
RECIPES: dict[str, list[str]] = {
    "ours": [],
    "MoFore as published": [
        "backbone.attention=per_frame", "backbone.tubelet=1", "forecaster.kind=mlp", "forecaster.dim=384",
        "loss={regression: mse, normalise_targets: false, contrast: 1.0, temperature: 0.1}", *FORECAST_ALONE,
        "teacher={momentum: 0.7, final_momentum: 0.7}", "optimizer.lr=1e-3",
    ],
    # on the hard form, validation part: none of these learned clearly more at our rate of 2e-3, nor MoCo v3 at 5e-4 (four
    # minutes), none at a momentum of 0.99 or with a warm-up of 200 steps (ten minutes), and MoCo v3 more at our
    # temperature than at its own of 0.2; V-JEPA's momentum was tried with the masks that it had before
    **dict.fromkeys(ALTERNATIVES, ["optimizer.lr=1e-3"]),
    "with labels": ["optimizer.lr=1e-3", "data.augment.still=0"],  # a ceiling: the views too
    **{name: [] for name in BASELINES},
}  # fmt: skip
ONE_THING: dict[str, list[str]] = {  # that differs
    "contexts alone": ["loss.query=context"],
    "the forecast is told apart": FORECAST_ALONE,
    "half of the tokens": ["data.keep=0.5"],
    "two targets": ["data.targets=2"],
    "near": ["data.gap.min=0", "data.gap.max=0.3"],
    "far": ["data.gap.min=0.6", "data.gap.max=1.2"],
    "log-uniform gaps": ["data.gap={law: log_uniform, min: 0.1, max: 1.2}"],
    "no contrast": ["loss.contrast=0"],
    "contrast 1": ["loss.contrast=1"],
    "contrast 20": ["loss.contrast=20"],
    "temperature 0.05": ["loss.temperature=0.05"],
    "temperature 0.2": ["loss.temperature=0.2"],
    "batches of 64": ["global_batch=64"],
    "momentum 0.99": ["teacher.momentum=0.99"],
    "momentum 0.8": ["teacher.momentum=0.8"],
    "deep forecaster": ["forecaster.depth=3"],
    "wide forecaster": ["forecaster.dim=192", "forecaster.heads=6"],
    "pooled forecast": ["forecaster.kind=mlp", "forecaster.dim=384"],
    "raw targets": ["loss.normalise_targets=false"],
}
EXPERIMENTS: dict[str, list[str]] = {
    "ours": [],
    **{f"ours: {name}": words for name, words in ONE_THING.items()},
    **dict.fromkeys(VARIANTS, FORECAST_ALONE),  # the product's own contrast has no part in them
    "both ways: pictures of other videos": [*FORECAST_ALONE, "data.augment.still=0"],
}
WORDS = RECIPES | EXPERIMENTS


def build(name: str, config: PretrainConfig, classes: int) -> Objective:
    if name == "with labels":
        return Supervised(config, classes)
    if name in VARIANTS:
        return Variant(config, VARIANTS[name])
    return ALTERNATIVES.get(name, Forecasting)(config)
