"""Sweeps: a job array that pretrains each run, an evaluation of each afterwards, one comparison.

backbone=vit_tiny,vit_small -> RUN_DIR/backbone=vit_tiny, RUN_DIR/backbone=vit_small, compare.json

Runs that are finished or in the queue are not submitted again.
"""

import json
from pathlib import Path
from typing import NamedTuple

import yaml

from mofore.checkpoint.format import list_checkpoints
from mofore.config import CONFIG_DIR, PretrainConfig, expand_sweep
from mofore.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, UserError
from mofore.launch.cluster import ClusterConfig
from mofore.launch.executors import JobRequest, cancel_jobs, run_here, submit_slurm
from mofore.launch.runs import active_jobs, remove_submission
from mofore.launch.tasks import Task, compare_task, evaluate_task, pretrain_task
from mofore.quoting import text_keys, to_option, to_override

EVALUATE = "evaluate."


class Point(NamedTuple):
    """One run of a sweep."""

    pretrain: Task
    evaluate: Task

    @property
    def run(self) -> Path:
        return self.pretrain.run

    def is_pretrained(self) -> bool:
        checkpoints = list_checkpoints(self.run)
        return bool(checkpoints) and checkpoints[-1][0] >= self.pretrain.config["steps"]

    def is_evaluated(self) -> bool:
        try:
            document = json.loads((self.run / "evaluation/results.json").read_text())
        except FileNotFoundError:
            return False
        return document["checkpoint"]["step"] >= self.pretrain.config["steps"]


class Sweep(NamedTuple):
    root: Path
    cluster: ClusterConfig
    cluster_overrides: list[str]
    points: list[Point]

    def request(self, tasks: list[Task]) -> JobRequest:
        """A job for these tasks, which are all of one kind."""
        cluster = self.cluster if tasks[0].ranks else self.cluster.single_task()
        return JobRequest(cluster, self.cluster_overrides, tasks)

    def comparison(self) -> JobRequest:
        return self.request([compare_task([point.run for point in self.points], self.root)])


def plan(
    cluster: ClusterConfig,
    cluster_overrides: list[str],
    overrides: list[str],
    config_dir: Path | None = None,
) -> Sweep:
    """Every run of the sweep, its configuration checked. evaluate.KEY=VALUE is for evaluations."""
    evaluation = [each.removeprefix(EVALUATE) for each in overrides if each.startswith(EVALUATE)]
    rest = [each for each in overrides if not each.startswith(EVALUATE)]
    combinations = expand_sweep(read_sweep(rest, config_dir))
    sizes = cluster.world_sizes
    root, points = pretrain_task(combinations[0][0], sizes, config_dir).run, []
    for common, varied in combinations:
        run = root / ",".join(each.rpartition("/")[2] for each in varied)
        own = [*common, *varied, to_override("run_dir", str(run))]
        pretrain = pretrain_task(own, sizes, config_dir)
        points.append(Point(pretrain, evaluate_task(run, evaluation)))
    if len({point.run for point in points}) < len(points):
        raise UserError(
            f"Two runs of this sweep would share a folder below {root}: its values must differ "
            "after their last slash."
        )
    return Sweep(root, cluster, cluster_overrides, points)


def read_sweep(overrides: list[str], config_dir: Path | None = None) -> list[str]:
    """sweep=NAME replaced by the contents of sweep/NAME.yaml, one override per key."""
    names = [each.removeprefix("sweep=") for each in overrides if each.startswith("sweep=")]
    rest = [each for each in overrides if not each.startswith("sweep=")]
    texts = text_keys(PretrainConfig)
    for name in names:
        text = _sweep_file(name, config_dir).read_text(encoding="utf-8")
        # BaseLoader keeps each value as it is written: 007 and 1e3 may be names.
        values = yaml.load(text, Loader=yaml.BaseLoader)
        for key, options in values.items():
            write = to_option if key in texts else _to_text
            rest.append(f"{key}={','.join(map(write, options))}")
    return rest


def _to_text(value: object) -> str:
    """A value of a sweep file, as hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_to_text, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_to_text(item)}' for key, item in value.items())}}}"
    return str(value)


def _sweep_file(name: str, config_dir: Path | None) -> Path:
    folders = [folder / "sweep" for folder in (config_dir, CONFIG_DIR) if folder]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    where = " and ".join(map(str, folders))
    raise UserError(f"sweep={name}: there is no such file; {where} has: {', '.join(known)}.")


def submit_sweep(sweep: Sweep) -> list[str]:
    """Submit what is missing to SLURM; returns a line per job. If one is refused, none is left."""
    submission = _Submission(sweep)
    try:
        submission.submit_pretraining()
        submission.submit_evaluations()
        submission.submit_comparison()
    except BaseException:
        submission.cancel()
        raise
    return submission.lines


class _Submission:
    """The jobs of a sweep while it is submitted."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.folder = sweep, sweep.root / "jobs"
        self.submitted: list[tuple[Path, str]] = []
        self.lines: list[str] = []
        active = active_jobs([sweep.root, *(point.run for point in sweep.points)])
        self.active = {run_and_task: job.id for run_and_task, job in active.items()}

    def submit_pretraining(self) -> None:
        missing = [
            point
            for point in self.sweep.points
            if not point.is_pretrained() and (point.run, "pretrain") not in self.active
        ]
        if not missing:
            return
        request = self.sweep.request([point.pretrain for point in missing])
        for point, job in zip(missing, submit_slurm(request, self.folder), strict=True):
            self._add(point.run, "pretrain", job, f"pretrain {point.run.name}")

    def submit_evaluations(self) -> None:
        for point in self.sweep.points:
            if point.is_evaluated() or (point.run, "evaluate") in self.active:
                continue
            before = self.active.get((point.run, "pretrain"))
            request = self.sweep.request([point.evaluate])
            dependency = f"afterok:{before}" if before else None
            (job,) = submit_slurm(request, self.folder, dependency)
            suffix = f", after job {before}" if before else ""
            self._add(point.run, "evaluate", job, f"evaluate {point.run.name}{suffix}")

    def submit_comparison(self) -> None:
        root = self.sweep.root
        old = self.active.get((root, "compare"))
        if not self.submitted and (old or _is_compared(root)):
            return
        if old:  # it waits for fewer evaluations than there are now
            cancel_jobs([old])
        waits = [job for (_, task), job in self.active.items() if task == "evaluate"]
        dependency = f"afterany:{':'.join(waits)}" if waits else None
        (job,) = submit_slurm(self.sweep.comparison(), self.folder, dependency)
        self.lines.append(f"job {job}: compare them in {root / 'compare.txt'}")

    def cancel(self) -> None:
        cancel_jobs([job for _, job in self.submitted])
        for run, job in self.submitted:
            remove_submission(run, job)

    def _add(self, run: Path, task: str, job: str, line: str) -> None:
        self.submitted.append((run, job))
        self.active[run, task] = job
        self.lines.append(f"job {job}: {line}")


def _is_compared(root: Path) -> bool:
    """Whether there is a comparison that lacks no run."""
    try:
        return not json.loads((root / "compare.json").read_text())["failures"]
    except FileNotFoundError:
        return False


def run_sweep_here(sweep: Sweep) -> int:
    """Run one point after the other on this machine; a failure does not stop the others."""
    worst = 0
    for point in sweep.points:
        code = _run_point(sweep, point)
        if code in (EXIT_RESUMABLE, EXIT_INTERRUPTED):
            return code
        worst = max(worst, code)
    return max(worst, run_here(sweep.comparison(), sweep.root / "jobs"))


def _run_point(sweep: Sweep, point: Point) -> int:
    code = 0
    if not point.is_pretrained():
        code = run_here(sweep.request([point.pretrain]), point.run / "jobs")
    if code == 0 and not point.is_evaluated():
        code = run_here(sweep.request([point.evaluate]), point.run / "jobs")
    return code
