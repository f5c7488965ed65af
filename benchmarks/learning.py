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
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import footage as videos
from benchmarks.footage import Footage
from benchmarks.objectives import ALTERNATIVES, Forecasting, Objective, Supervised
from evaluation.encoders import frame_differences, pixels
from evaluation.features import Features
from evaluation.recognition import knn, linear_probe
from evaluation.retrieval import retrieval
from mofore.collapse import effective_rank
from mofore.config import EvaluateConfig, PretrainConfig, asdict_plain, compose
from mofore.optim import build_optimizer, parameter_groups
from mofore.run import code_commit
from mofore.schedules import learning_rate, teacher_momentum

RESULTS = Path(__file__).parent / "results" / "learning.jsonl"
VIEWS, METRICS = 4, ("knn_accuracy", "retrieval_r1", "linear_probe_accuracy", "effective_rank")
CALIBRATION = 20  # steps that tell how many fit into the time
RECIPES: dict[str, list[str]] = {  # words of `mofore pretrain` on top of experiment=demo
    "ours": [],
    "ours, half of the tokens": ["data.keep=0.5"],
    "ours, two targets": ["data.targets=2"],
    "MoFore as published": [
        "backbone.attention=per_frame", "backbone.tubelet=1", "forecaster.kind=mlp", "forecaster.dim=384",
        "loss={regression: mse, normalise_targets: false, contrast: 1.0, temperature: 0.1}",
        "teacher={momentum: 0.7, final_momentum: 0.7}",
    ],
    "with labels": [],
    **{name: [] for name in ALTERNATIVES},
    "untrained": [],
    "pixels": [],
    "frame differences": [],
}  # fmt: skip


def build(name: str, config: PretrainConfig, classes: int) -> Objective:
    if name == "with labels":
        return Supervised(config, classes)
    return ALTERNATIVES[name](config) if name in ALTERNATIVES else Forecasting(config)


def train(
    objective: Objective, config: PretrainConfig, footage: Footage, seconds: float, seed: int
) -> tuple[int, float]:
    """For so many seconds, sampling included; returns steps and the last losses' mean. Schedules end with the time."""
    rows, rates = footage.rows("train"), config.optimizer
    codes = np.unique(footage.labels, return_inverse=True)[1]
    source = videos.batches(footage, rows, config.data, config.global_batch, seed, config.tokens)
    optimizer = build_optimizer(parameter_groups(objective, rates.weight_decay), rates)
    steps, step, losses = 10**9, 0, []
    begin = time.perf_counter()
    while step < steps:
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
        if step == CALIBRATION:
            steps = max(step, int(seconds / (time.perf_counter() - begin) * CALIBRATION))
    return step, statistics.mean(losses[-50:])


@torch.inference_mode()
def features(encode: Any, footage: Footage, config: PretrainConfig, part: str) -> Features:
    """Of train and of one other part, which is called test for the evaluators."""
    rows = np.concatenate([footage.rows("train"), footage.rows(part)])
    clips = [encode(videos.views(footage, row, config.data, VIEWS)).float().numpy() for row in rows]
    parts = np.where(footage.parts[rows] == "train", "train", "test")
    return Features(np.stack(clips), footage.labels[rows], footage.groups[rows], parts)


def measure(found: Features) -> dict[str, tuple[float, float, float]]:
    """Value and 95% interval over groups by metric."""
    cfg = EvaluateConfig(run="none")
    results = {
        each.metric: each for evaluator in (knn, linear_probe, retrieval) for each in evaluator(found, cfg)
    }
    told = {name: (results[name].value, results[name].low, results[name].high) for name in METRICS[:3]}
    rank = float(effective_rank(torch.from_numpy(found.part("test").embeddings)))
    return told | {"effective_rank": (rank, rank, rank)}  # type: ignore[return-value]


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
    steps, loss, encode = 0, None, objective.encoder.embed
    if name in ("pixels", "frame differences"):
        encode = {"pixels": pixels, "frame differences": frame_differences}[name]
    elif name != "untrained":
        steps, loss = train(objective, config, footage, 60 * minutes, seed)
    scores = measure(features(encode, footage, config, part))
    config.data.manifest = form  # not where it lies on this machine
    return {"recipe": name, "form": form, "textures": textures, "minutes": minutes, "seed": seed, "part": part, "words": words,
            "steps": steps, "loss": loss, "scores": scores, "commit": code_commit(), "config": asdict_plain(config)}  # fmt: skip


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
