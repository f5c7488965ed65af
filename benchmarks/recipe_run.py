"""One run of benchmarks.learning: train a recipe, evaluate its encoder, return a results line."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.objectives import Forecasting, Objective
from benchmarks.recipes import OVERRIDES, REFERENCE, UNTRAINED, build_objective
from benchmarks.scores import (
    Interval,
    all_scores,
    as_test_split,
    correct_by_group,
    extract_features,
    forecast_scores,
    knn_scores,
)
from benchmarks.trainer import RecipeTrainer, relative_step_cost, train
from benchmarks.variants import VARIANTS
from benchmarks.video_cache import VideoCache, load_videos
from mofore.config import PretrainConfig, compose, to_plain_dict
from mofore.run_folder import code_commit

REFERENCE_STEPS_PER_MINUTE = 500  # of experiment=demo on one core of an AMD EPYC at 2.6 GHz
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class RunSettings:
    """What a results line is found by, beside recipe and seed. textures: 0 for other datasets."""

    dataset: str
    textures: int
    minutes: float
    overrides: list[str]


def run_recipe(
    name: str, seed: int, manifest: Path, settings: RunSettings, report: Callable[[str], object]
) -> dict:
    """Run in a separate process. report: called with a message at each evaluation."""
    torch.set_num_threads(1)
    common = ["experiment=demo", f"data.manifest={manifest}", f"seed={seed}"]
    reference = compose(PretrainConfig, common)
    config = compose(PretrainConfig, [*common, *OVERRIDES[name], *settings.overrides])
    # Videos must also have room for the clips of the reference, which is timed on them.
    cache = load_videos(manifest, config.data, reference.data)
    steps, loss, cost = 0, None, None
    curve: list[list[float]] = []
    if name not in UNTRAINED:
        cost = measure_cost(name, config, reference, cache)
        steps = max(1, round(settings.minutes * REFERENCE_STEPS_PER_MINUTE / cost))
    objective = seeded_objective(name, config, cache)
    encode = UNTRAINED.get(name) or objective.encoder.embed

    def evaluate(step: int) -> float:
        features = extract_features(encode, cache, config, "validation")
        accuracy = knn_scores(as_test_split(features, "validation"))["knn_accuracy"][0]
        report(
            f"{name}, seed {seed}, step {step} of {steps}: kNN {accuracy:.1%} on the validation "
            "split"
        )
        return accuracy

    if steps:
        trainer = RecipeTrainer(objective, config, cache, steps, seed)
        loss, curve = train(trainer, settings.minutes, evaluate)
    features = extract_features(encode, cache, config, *SPLITS)
    by_split = {split: as_test_split(features, split) for split in SPLITS}
    scores = {split: all_scores(each) for split, each in by_split.items()}
    if steps:
        _add_forecast_scores(scores, objective, cache, config)
        curve.append([60 * settings.minutes, scores["validation"]["knn_accuracy"][0]])
    config.data.manifest = settings.dataset  # not the path, which is of this machine
    return {
        "recipe": name,
        **asdict(settings),
        "seed": seed,
        "variant": asdict(VARIANTS[name]) if name in VARIANTS else None,
        "relative_step_cost": cost,
        "steps": steps,
        "loss": loss,
        "scores": scores,
        "correct_by_group": {split: correct_by_group(each) for split, each in by_split.items()},
        "curve": curve,
        "commit": code_commit(),
        "config": to_plain_dict(config),
    }


def seeded_objective(name: str, config: PretrainConfig, cache: VideoCache) -> Objective:
    """Fresh weights, drawn from the seed of the configuration."""
    torch.manual_seed(config.seed)
    return build_objective(name, config, len(set(cache.labels)))


def measure_cost(
    name: str, config: PretrainConfig, reference: PretrainConfig, cache: VideoCache
) -> float:
    """CPU time of a step of this recipe, sampling included, relative to the reference's."""
    endless = 1000  # more steps than are timed, so that the schedules do not end
    pair = [
        RecipeTrainer(seeded_objective(recipe, each, cache), each, cache, endless, reference.seed)
        for recipe, each in ((name, config), (REFERENCE, reference))
    ]
    return relative_step_cost(*pair)


def _add_forecast_scores(
    scores: dict[str, dict[str, Interval]],
    objective: Objective,
    cache: VideoCache,
    config: PretrainConfig,
) -> None:
    """Only of the library's own objective: a variant may forecast something else."""
    if type(objective) is Forecasting:
        for split, found in scores.items():
            found |= forecast_scores(objective.model, cache, config, split)
