"""Many runs at once: an array that pretrains each, an evaluation of each once it is done, one comparison of them all.

backbone=vit_tiny,vit_small -> RUN_DIR/backbone=vit_tiny, RUN_DIR/backbone=vit_small, RUN_DIR/compare.json

What is done already, or waits in the queue, is not submitted again.
"""

import json
from pathlib import Path
from typing import NamedTuple

import yaml

from mofore.checkpoint.format import list_checkpoints
from mofore.config import CONFIG_DIR, expand_sweep
from mofore.errors import UserError
from mofore.launch.cluster import ClusterConfig
from mofore.launch.runs import active_jobs, remove_submission
from mofore.launch.submit import (
    JobRequest,
    cancel_jobs,
    cluster_of,
    run_here,
    split_overrides,
    submit_slurm,
)
from mofore.launch.tasks import Task, parse_task


class Point(NamedTuple):
    """One run of a sweep."""

    pretrain: Task
    evaluate: Task

    def pretrained(self) -> bool:
        done = list_checkpoints(self.pretrain.run)
        return bool(done) and done[-1][0] >= self.pretrain.config["steps"]

    def evaluated(self) -> bool:
        try:
            document = json.loads((self.pretrain.run / "evaluation/results.json").read_text())
        except FileNotFoundError:
            return False
        return document["checkpoint"]["step"] >= self.pretrain.config["steps"]


class Sweep(NamedTuple):
    root: Path
    cluster: ClusterConfig
    cluster_words: list[str]
    points: list[Point]

    def comparison(self) -> Task:
        words = [
            "compare",
            *(str(point.pretrain.run) for point in self.points),
            "--out",
            str(self.root),
        ]
        return Task("compare", words, self.root, False, {})


def plan(words: list[str]) -> Sweep:
    """Every run of the sweep, its configuration checked. Words `evaluate.KEY=VALUE` go to the evaluations."""
    cluster_words, rest = split_overrides(words)
    cluster = cluster_of(cluster_words)
    evaluation = [word.removeprefix("evaluate.") for word in rest if word.startswith("evaluate.")]
    rest = [word for word in rest if not word.startswith("evaluate.")]
    combinations = expand_sweep(sweep_words(rest))
    root, points = parse_task(combinations[0][0], cluster.worlds).run, []
    for common, varied in combinations:
        run = root / ",".join(word.rpartition("/")[2] for word in varied)
        pretrain = parse_task([*common, *varied, f"run_dir='{run}'"], cluster.worlds)
        points.append(
            Point(pretrain, parse_task(["task=evaluate", f"run='{run}'", *evaluation], [1]))
        )
    return Sweep(root, cluster, cluster_words, points)


def sweep_words(words: list[str]) -> list[str]:
    """sweep=NAME -> what configs/sweep/NAME.yaml says, a word a key."""
    named = [word.removeprefix("sweep=") for word in words if word.startswith("sweep=")]
    rest = [word for word in words if not word.startswith("sweep=")]
    for name in named:
        path = CONFIG_DIR / "sweep" / f"{name}.yaml"
        if not path.is_file():
            there = ", ".join(sorted(path.stem for path in path.parent.glob("*.yaml")))
            raise UserError(f"sweep={name}: there is {there} in {path.parent}.")
        rest += [
            f"{key}={','.join(map(str, values))}"
            for key, values in yaml.safe_load(path.read_text()).items()
        ]
    return rest


def submit_sweep(sweep: Sweep) -> list[str]:
    """What is missing of the sweep, to SLURM; returns a line a job. Where one is refused, none stays behind."""
    folder, lines = sweep.root / "jobs", []
    submitted: list[tuple[Path, str]] = []
    living = active_jobs([sweep.root, *(point.pretrain.run for point in sweep.points)])
    alive = {place: each.id for place, each in living.items()}
    try:
        missing = [
            p
            for p in sweep.points
            if not p.pretrained() and (p.pretrain.run, "pretrain") not in alive
        ]
        if missing:
            order = JobRequest(
                sweep.cluster, sweep.cluster_words, [point.pretrain for point in missing]
            )
            for point, job in zip(missing, submit_slurm(order, folder), strict=True):
                submitted.append((point.pretrain.run, job))
                alive[point.pretrain.run, "pretrain"] = job
                lines.append(f"job {job}: pretrain {point.pretrain.run.name}")
        for point in sweep.points:
            run = point.pretrain.run
            if point.evaluated() or (run, "evaluate") in alive:
                continue
            before = alive.get((run, "pretrain"))
            one = JobRequest(sweep.cluster.alone(), sweep.cluster_words, [point.evaluate])
            (job,) = submit_slurm(one, folder, f"afterok:{before}" if before else None)
            submitted.append((run, job))
            alive[run, "evaluate"] = job
            lines.append(
                f"job {job}: evaluate {run.name}" + (f", after job {before}" if before else "")
            )
        old = alive.get((sweep.root, "compare"))
        if not submitted and (old or _compared(sweep.root)):
            return []
        if old:  # it waits for fewer evaluations than there are now
            cancel_jobs([old])
        waits = [job for (_, task), job in alive.items() if task == "evaluate"]
        last = JobRequest(sweep.cluster.alone(), sweep.cluster_words, [sweep.comparison()])
        (job,) = submit_slurm(last, folder, "afterany:" + ":".join(waits) if waits else None)
        lines.append(f"job {job}: compare them in {sweep.root / 'compare.txt'}")
    except BaseException:
        cancel_jobs([job for _, job in submitted])
        for run, job in submitted:
            remove_submission(run, job)
        raise
    return lines


def _compared(root: Path) -> bool:
    """Whether the comparison stands, with every run in it."""
    try:
        return not json.loads((root / "compare.json").read_text())["failures"]
    except FileNotFoundError:
        return False


def run_sweep_here(sweep: Sweep) -> int:
    """One after the other on this machine; a failure does not keep the others from their turn."""
    code = 0
    for point in sweep.points:
        for task, done in ((point.pretrain, point.pretrained), (point.evaluate, point.evaluated)):
            if done():
                continue
            cluster = sweep.cluster if task.ranks else sweep.cluster.alone()
            failed = run_here(JobRequest(cluster, sweep.cluster_words, [task]), task.run / "jobs")
            if failed in (75, 130):
                return failed
            code = max(code, failed)
            if failed:
                break
    last = sweep.comparison()
    return max(
        code,
        run_here(
            JobRequest(sweep.cluster.alone(), sweep.cluster_words, [last]), sweep.root / "jobs"
        ),
    )
