"""What is learned with equal compute: python -m benchmarks.learning --minutes 10 --seeds 3

Every recipe trains the same backbone on the same videos with the same compute, in one thread. Its
frozen encoder is evaluated on textures that it never saw. The supervised recipe is an upper bound.

Compute is normalised, because the speed of a machine changes from hour to hour: before a run, its
step and MoFore's are timed in turn, sampling included, and a recipe whose step costs c times
MoFore's gets 1/c of its steps. MoFore makes 500 steps per minute. Runs of different machines and
days can then be compared, and the number of steps of a seed varies only with the error of c.

Each run appends a line to benchmarks/results/learning.jsonl. Runs that are there already are not
repeated, and the table is of those that match the arguments. A line has the scores of both splits.
The table shows the validation split, which choices may look at, unless --split test is given.

Your own videos, prepared with labels, splits and groups, one manifest per fold:
  python -m benchmarks.learning --dataset NAME --manifest fold1/manifest.parquet \\
      fold2/manifest.parquet -- data.size=64
"""

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks.recipe_run import SPLITS, RunSettings, run_recipe
from benchmarks.recipes import ABLATIONS, OVERRIDES, RECIPES, REFERENCE
from benchmarks.tables import build_table, draw_plot
from benchmarks.video_cache import DATASETS, prepare_dataset
from mofore.errors import UserError
from mofore.files import append_jsonl, read_jsonl

RESULTS = Path(__file__).parent / "results" / "learning.jsonl"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", default="easy", help="easy, hard, or the name of a --manifest in the results")
    add(
        "--manifest",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="your own videos, one manifest per fold: seed 0 uses the first, and so on",
    )
    add("--textures", type=int, default=150, help="of the easy and hard videos (default: 150)")
    add("--minutes", type=float, default=10.0, help="normalised minutes per run (default: 10)")
    add("--seeds", type=int, default=3, help="number of seeds, from 0 (default: 3)")
    recipes = parser.add_mutually_exclusive_group()
    recipes.add_argument(
        "--recipes",
        nargs="+",
        choices=OVERRIDES,
        metavar="NAME",
        help="default: MoFore, the baselines, the supervised upper bound, untrained encoders",
    )
    recipes.add_argument("--ablations", action="store_true", help="run the ablations of MoFore")
    add("--split", choices=SPLITS, default="validation", help="of the table (default: validation)")
    add("--videos", type=Path, default=Path("demo/learning"), metavar="DIR", help="of the videos")
    add("--workers", type=int, default=os.cpu_count(), help="parallel runs (default: all cores)")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="read from and added to")
    add("--show", action="store_true", help="print the table of the results, run nothing")
    add("--plot", type=Path, metavar="FILE", help="also draw kNN against time")
    add(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="for every recipe, as for `mofore pretrain`; after -- if --recipes is last",
    )
    return parser


def main() -> int:
    parser = build_parser()
    options = parser.parse_args()
    recipes = options.recipes or list(ABLATIONS if options.ablations else RECIPES)
    generated = options.dataset in DATASETS
    if generated == bool(options.manifest) and not options.show:
        parser.error(
            f"--dataset {options.dataset}: {' and '.join(DATASETS)} are generated; any other "
            "dataset needs --manifest."
        )
    settings = run_settings(options)
    if not options.show:
        run_missing(recipes, options, settings)
    lines = select_lines(options, recipes, settings)
    if not lines:
        print(f"mofore: {options.results} has no such run.", file=sys.stderr)
        return 1
    print(build_table(lines, REFERENCE))
    if options.plot:
        draw_plot(lines, options.plot)
    return 0


def run_settings(options: argparse.Namespace) -> RunSettings:
    textures = options.textures if options.dataset in DATASETS else 0
    return RunSettings(options.dataset, textures, options.minutes, options.overrides)


def matching_lines(path: Path, settings: RunSettings) -> list[dict]:
    """The runs of a results file with these settings."""
    wanted = asdict(settings).items()
    return [line for line in read_jsonl(path) if all(line[key] == value for key, value in wanted)]


def select_lines(
    options: argparse.Namespace, recipes: list[str], settings: RunSettings
) -> list[dict]:
    """The runs of a table, in the order of the recipes, with the scores of one split alone."""
    split = options.split
    lines = [
        line | {key: line[key].get(split, {}) for key in ("scores", "correct_by_group")}
        for line in matching_lines(options.results, settings)
        if line["recipe"] in recipes and line["seed"] < options.seeds and split in line["scores"]
    ]
    return sorted(lines, key=lambda line: recipes.index(line["recipe"]))


def run_missing(recipes: list[str], options: argparse.Namespace, settings: RunSettings) -> None:
    """Make the runs that the results file lacks."""
    done = {(line["recipe"], line["seed"]) for line in matching_lines(options.results, settings)}
    runs = [(name, seed) for seed in range(options.seeds) for name in recipes]
    missing = [run for run in runs if run not in done]
    if not missing:
        return
    folds = options.manifest
    if not folds:
        folds = [prepare_dataset(options.dataset, options.videos, options.textures)]
    os.environ["OMP_NUM_THREADS"] = "1"
    options.results.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(options.workers, context, max_tasks_per_child=1) as pool,
        tqdm(desc="runs", total=len(missing), unit="run", dynamic_ncols=True) as bar,
    ):
        messages = manager.Queue()
        pending = {
            pool.submit(run_recipe, name, seed, folds[seed % len(folds)], settings, messages.put)
            for name, seed in missing
        }
        while pending:
            finished, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
            while not messages.empty():
                bar.write(messages.get(), file=sys.stderr)
            for future in finished:
                append_jsonl(options.results, future.result())
                bar.update()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"mofore: error: {error}")
