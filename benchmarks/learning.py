"""What is learned in equal time: python -m benchmarks.learning --minutes 10 --seeds 3

Every recipe trains the same backbone on the same videos for the same time, in one thread, and its frozen encoder is
measured on textures that it never saw. A machine is not the same from one hour to the next, so the clock is ours: before
a run its step and that of ours are timed in turn, sampling included, and it makes as many steps as fit into the time in
which ours makes STEPS_A_MINUTE a minute. So runs of different machines and days can be compared, and the same seed makes
the same number of steps but for the error of that ratio. The supervised recipe is the ceiling: the same backbone
with labels.
A line a run goes to benchmarks/results/learning.jsonl; runs that are there already are not made again, and the table is
of those that fit the arguments. A line has the scores of both parts; the table shows the validation part, which choices
look at, and the test part only when asked.

Of your own videos, prepared with labels, splits and groups, a manifest for each fold:
  python -m benchmarks.learning --form NAME --manifest fold1/manifest.parquet fold2/manifest.parquet -- data.size=64
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks import video_cache as videos
from benchmarks.objectives import Forecasting, Objective
from benchmarks.recipes import BASELINES, EXPERIMENTS, RECIPES, WORDS, build
from benchmarks.scores import against, features, measure, recognised, right_by_group, skill
from benchmarks.tables import picture, table
from benchmarks.trainer import Trainer, cost, train
from benchmarks.variants import VARIANTS
from mofore.config import PretrainConfig, to_plain_dict, compose
from mofore.errors import UserError
from mofore.run_folder import code_commit

RESULTS = Path(__file__).parent / "results" / "learning.jsonl"
STEPS_A_MINUTE = 500  # of ours (experiment=demo) on one core of an AMD EPYC at 2.6 GHz
FAR = 1000  # the last step of a run that is only timed: it never comes there
PARTS = ("validation", "test")


def run(
    name: str,
    manifest: Path,
    form: str,
    textures: int,
    minutes: float,
    seed: int,
    words: list[str],
    tell: Callable[[str], object],
) -> dict:
    """One recipe with one seed, in a process of its own. Each look at the encoder is told."""
    torch.set_num_threads(1)
    set_words = ["experiment=demo", f"data.manifest={manifest}", f"seed={seed}"]
    reference = compose(PretrainConfig, set_words)
    config = compose(PretrainConfig, [*set_words, *WORDS[name], *words])
    video_cache = videos.load(
        manifest, config.data, reference.data
    )  # the reference is timed on it too
    classes = len(set(video_cache.labels))
    steps, loss, price = 0, None, None
    curve: list[list[float]] = []  # [seconds, kNN on the validation part]

    def fresh(recipe: str, its: PretrainConfig) -> Objective:
        torch.manual_seed(seed)
        return build(recipe, its, classes)

    if name not in BASELINES:
        timed = [
            Trainer(fresh(recipe, its), its, video_cache, FAR, seed)
            for recipe, its in ((name, config), ("ours", reference))
        ]
        price = cost(*timed)
        steps = max(1, round(minutes * STEPS_A_MINUTE / price))
    objective = fresh(name, config)
    encode = BASELINES.get(name) or objective.encoder.embed

    def look(step: int) -> float:
        found = recognised(
            against(features(encode, video_cache, config, "validation"), "validation")
        )
        accuracy = found["knn_accuracy"][0]
        tell(
            f"{name}, seed {seed}, step {step} of {steps}: kNN {accuracy:.1%} of the validation part"
        )
        return accuracy

    if steps:
        loss, curve = train(Trainer(objective, config, video_cache, steps, seed), minutes, look)
    every = features(encode, video_cache, config, *PARTS)
    seen = {part: against(every, part) for part in PARTS}
    scores = {part: measure(found) for part, found in seen.items()}
    if steps and type(objective) is Forecasting:
        scores = {
            part: found | skill(objective.whole, video_cache, config, part)
            for part, found in scores.items()
        }
    if steps:
        curve.append([60 * minutes, scores["validation"]["knn_accuracy"][0]])
    config.data.manifest = form  # not where it lies on this machine
    return {
        "recipe": name,
        "form": form,
        "textures": textures,
        "minutes": minutes,
        "seed": seed,
        "words": words,
        "terms": asdict(VARIANTS[name]) if name in VARIANTS else None,
        "cost": price,
        "steps": steps,
        "loss": loss,
        "scores": scores,
        "by_group": {part: right_by_group(found) for part, found in seen.items()},
        "curve": curve,
        "commit": code_commit(),
        "config": to_plain_dict(config),
    }


def stored(path: Path, fits: dict) -> list[dict]:
    """The runs of a results file that fit."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if all(line[key] == value for key, value in fits.items())]


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--form",
        default="easy",
        help="easy, hard, or the name that --manifest goes by in the results",
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="videos of your own, a manifest for each fold: seed 0 takes the first, and so on",
    )
    parser.add_argument(
        "--textures", type=int, default=150, help="of the videos that are made (default: 150)"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="of each run, by the clock of ours (default: 10)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, ... (default: 3)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--recipes",
        nargs="+",
        choices=WORDS,
        metavar="NAME",
        help="ours, the alternatives, a ceiling with labels and baselines, unless named",
    )
    which.add_argument("--experiments", action="store_true", help="what was tried on ours instead")
    parser.add_argument(
        "--part",
        choices=PARTS,
        default="validation",
        help="that the table is of: test is read once, at the end (default: validation)",
    )
    parser.add_argument(
        "--folder", default="demo/learning", help="for the videos (default: demo/learning)"
    )
    parser.add_argument(
        "--cores", type=int, default=os.cpu_count(), help="runs at once (default: all)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help="lines are read from and added to (default: benchmarks/results/learning.jsonl)",
    )
    parser.add_argument(
        "--show", action="store_true", help="what is in the results file, without any run"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw kNN against time too")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KEY=VALUE",
        help="for every recipe, over its own words, as for `mofore pretrain`; after -- where --recipes comes last",
    )
    asked = parser.parse_args()
    recipes = asked.recipes or list(EXPERIMENTS if asked.experiments else RECIPES)
    made = asked.form in videos.FORMS
    if made == bool(asked.manifest) and not asked.show:
        parser.error(
            f"--form {asked.form}: {' and '.join(videos.FORMS)} are made here, any other needs --manifest."
        )
    os.environ["OMP_NUM_THREADS"] = "1"
    fits = {
        "form": asked.form,
        "textures": asked.textures if made else 0,
        "minutes": asked.minutes,
        "words": asked.words,
    }
    there = {(line["recipe"], line["seed"]) for line in stored(asked.results, fits)}
    missing = [
        (name, seed) for seed in range(asked.seeds) for name in recipes if (name, seed) not in there
    ]
    if missing and not asked.show:
        folds = asked.manifest or [videos.make(asked.form, Path(asked.folder), asked.textures)]
        run_all(missing, asked, folds, fits)
    lines = [
        line
        for line in stored(asked.results, fits)
        if line["recipe"] in recipes and line["seed"] < asked.seeds
    ]
    lines = [line for line in lines if asked.part in line["scores"]]
    if not lines:
        print(f"mofore: {asked.results} has no such run.", file=sys.stderr)
        return 1
    for line in lines:
        line["scores"], line["by_group"] = (
            line["scores"][asked.part],
            line["by_group"].get(asked.part, {}),
        )
    lines.sort(
        key=lambda line: recipes.index(line["recipe"])
    )  # a colour is that of a recipe in every picture
    print(table(lines, "ours"))
    if asked.picture:
        picture(lines, asked.picture)
    return 0


def run_all(
    missing: list[tuple[str, int]], asked: argparse.Namespace, folds: list[Path], facts: dict
) -> None:
    """Each in a process of its own; a line is written as soon as its run has ended."""
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(asked.cores, context, max_tasks_per_child=1) as pool,
        tqdm(desc="runs", total=len(missing), unit="run", dynamic_ncols=True) as bar,
    ):
        looks = manager.Queue()
        waiting = {
            pool.submit(
                run, name, seed=seed, manifest=folds[seed % len(folds)], tell=looks.put, **facts
            )
            for name, seed in missing
        }
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_COMPLETED)
            while not looks.empty():
                bar.write(looks.get(), file=sys.stderr)
            for ended in done:
                with asked.results.open("a") as file:
                    file.write(json.dumps(ended.result()) + "\n")
                bar.update()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as reason:
        sys.exit(f"mofore: {reason}")
