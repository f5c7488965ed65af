"""What is learned in equal time: python -m benchmarks.learning --minutes 10 --seeds 3

Every recipe trains the same backbone on the same videos for the same wall-clock time, on one core each, and its frozen
encoder is measured on textures that it never saw. The supervised one is the ceiling: the same backbone with labels.
A line a run goes to benchmarks/results/learning.jsonl; the table is of the runs there that fit the arguments.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import footage as videos
from benchmarks.footage import Footage
from benchmarks.objectives import ALTERNATIVES, Forecasting, Objective, Supervised
from benchmarks.scores import features, measure, recognised, skill
from benchmarks.variants import VARIANTS
from evaluation.encoders import frame_differences, pixels
from mofore.config import PretrainConfig, asdict_plain, compose
from mofore.optim import build_optimizer, parameter_groups
from mofore.run import code_commit
from mofore.schedules import learning_rate, teacher_momentum

RESULTS = Path(__file__).parent / "results" / "learning.jsonl"
METRICS = ("knn_accuracy", "retrieval_r1", "linear_probe_accuracy", "time_sense", "effective_rank")
CALIBRATION = 20  # steps after which it is known how many fit into the time
LOOKS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.85)  # of the time: where the curves have points; the end is one more
BASELINES = {"untrained": None, "pixels": pixels, "frame differences": frame_differences}
RECIPES: dict[str, list[str]] = {  # words of `mofore pretrain` on top of experiment=demo
    "ours": [],
    "ours, half of the tokens": ["data.keep=0.5"],
    "ours, two targets": ["data.targets=2"],
    "MoFore as published": [
        "backbone.attention=per_frame", "backbone.tubelet=1", "forecaster.kind=mlp", "forecaster.dim=384",
        "loss={regression: mse, normalise_targets: false, contrast: 1.0, temperature: 0.1}",
        "teacher={momentum: 0.7, final_momentum: 0.7}",
    ],
    **{name: [] for name in VARIANTS},
    "contrast with other moments: two targets": ["data.targets=2"],
    "with labels": [],
    **{name: [] for name in (*ALTERNATIVES, *BASELINES)},
}  # fmt: skip


def build(name: str, config: PretrainConfig, classes: int) -> Objective:
    if name == "with labels":
        return Supervised(config, classes)
    form = name.partition(":")[0]
    return {**ALTERNATIVES, **VARIANTS}.get(form, Forecasting)(config)


def train(
    objective: Objective, config: PretrainConfig, footage: Footage, seconds: float, seed: int,
    look: Callable[[], float],
) -> tuple[int, float, list[list[float]]]:  # fmt: skip
    """For so many seconds, sampling included, looks not; schedules end with the time.

    Returns steps, the mean of the last losses, and the curve: [seconds, what a look found].
    """
    rows, rates = footage.rows("train"), config.optimizer
    codes = np.unique(footage.labels, return_inverse=True)[1]
    source = videos.batches(footage, rows, config.data, config.global_batch, seed, config.tokens)
    optimizer = build_optimizer(parameter_groups(objective, rates.weight_decay), rates)
    step, spent, losses, curve, looks = 0, 0.0, [], [], [share * seconds for share in LOOKS]
    while spent < seconds:
        begin = time.perf_counter()
        steps = max(step + 1, int(step * seconds / spent)) if step >= CALIBRATION else 10**9
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, rates.warmup, rates.lr, rates.final_lr)
        batch = next(source)
        loss = objective.loss(batch, torch.from_numpy(codes[batch.rows.numpy()]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), rates.clip or float("inf"))
        optimizer.step()
        objective.after(teacher_momentum(step, steps, *config.teacher.ends))
        losses.append(float(loss.detach()))
        step += 1
        spent += time.perf_counter() - begin
        if looks and spent >= looks[0]:
            curve.append([round(spent, 1), look()])
            looks.pop(0)
    return step, statistics.mean(losses[-50:]), curve


def run(
    name: str, form: str, folder: str, textures: int, minutes: float, seed: int, part: str, words: list[str]
) -> dict:
    """One recipe with one seed, in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    manifest = videos.make(form, Path(folder), textures)
    footage = videos.load(manifest)
    config = compose(
        PretrainConfig,
        ["experiment=demo", f"data.manifest={manifest}", f"seed={seed}", *words, *RECIPES[name]],
    )
    objective = build(name, config, len(set(footage.labels)))
    steps, loss, curve, encode = 0, None, [], objective.encoder.embed
    if name in BASELINES:
        encode = BASELINES[name] or encode
    else:
        steps, loss, curve = train(
            objective, config, footage, 60 * minutes, seed,
            lambda: recognised(features(encode, footage, config, part))["knn_accuracy"][0],
        )  # fmt: skip
    scores = measure(features(encode, footage, config, part))
    if steps and type(objective) is Forecasting:
        scores |= skill(objective.whole, footage, config, part)
    config.data.manifest = form  # not where it lies on this machine
    return {"recipe": name, "form": form, "textures": textures, "minutes": minutes, "seed": seed, "part": part, "words": words,
            "steps": steps, "loss": loss, "scores": scores, "curve": curve, "commit": code_commit(),
            "config": asdict_plain(config)}  # fmt: skip


def table(lines: list[dict]) -> None:
    """Means over seeds; the interval is the widest of the seeds' intervals over groups and the seeds' own range."""
    print(f"{'recipe':28} seeds  steps   " + "".join(f"{name:>28}" for name in METRICS))
    for name in dict.fromkeys(line["recipe"] for line in lines):
        runs = [line for line in lines if line["recipe"] == name]
        cells = []
        for metric in METRICS:
            scale, digits = (1, 1) if metric == "effective_rank" else (100, 1)
            values, lows, highs = (
                [scale * line["scores"][metric][i] for line in runs] for i in range(3)
            )  # fmt: skip
            cells.append(
                f"{statistics.mean(values):.{digits}f} [{min(lows):.{digits}f}, {max(highs):.{digits}f}]"
            )
        steps = round(statistics.mean(line["steps"] for line in runs))
        print(f"{name:28} {len(runs):5} {steps:6}   " + "".join(f"{cell:>28}" for cell in cells))


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.learning", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--form", choices=("easy", "hard"), default="easy")
    parser.add_argument("--textures", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each run (default: 10)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    parser.add_argument("--part", choices=("validation", "test"), default="validation",
                        help="test is read once, at the end (default: validation)")  # fmt: skip
    parser.add_argument("--folder", default="demo/learning", help="for the videos (default: demo/learning)")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="runs at once (default: all)")
    parser.add_argument(
        "words", nargs="*", metavar="KEY=VALUE", help="for every recipe, as for `mofore pretrain`"
    )
    asked = parser.parse_args()
    videos.make(asked.form, Path(asked.folder), asked.textures)
    facts = (asked.form, asked.folder, asked.textures, asked.minutes)
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = []
    RESULTS.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(
        asked.cores, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        waiting = [pool.submit(run, name, *facts, seed, asked.part, asked.words)
                   for seed in range(asked.seeds) for name in asked.recipes]  # fmt: skip
        for done in tqdm(as_completed(waiting), "runs", len(waiting), dynamic_ncols=True):
            lines.append(done.result())
            with RESULTS.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    table(sorted(lines, key=lambda line: asked.recipes.index(line["recipe"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
