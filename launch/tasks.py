"""A task of a job: its arguments, checked before the job starts, with paths that hold anywhere.

["runs/a", "views=8"] of `mofore submit evaluate` -> Task(name, argv of `mofore`, run folder)
"""

from pathlib import Path
from typing import NamedTuple

import fsspec

from mofore.config import PretrainConfig, compose, to_plain_dict
from mofore.data.manifest import read_manifest
from mofore.errors import UserError
from mofore.launch.commands import compose_evaluation, parse_command
from mofore.launch.overrides import overrides_of
from mofore.quoting import to_override


class Task(NamedTuple):
    name: str
    argv: list[str]  # of `mofore`, the name first
    run: Path  # run folder with jobs/; for prepare and compare the output folder
    ranks: bool  # whether it runs as several ranks
    config: dict  # resolved, for people to read


def pretrain_task(
    overrides: list[str], world_sizes: list[int], config_dir: Path | None = None
) -> Task:
    """UserError if the configuration is invalid for any world size or a video cannot be opened.

    With a `config_dir` the task has the resolved configuration, so that later edits to the folder
    do not change the job.
    """
    config = compose(PretrainConfig, overrides, config_dir)
    for world_size in world_sizes:
        config.split_batch(world_size)
    manifest = read_manifest(config.data.manifest, config.data.root)
    check_first_video(manifest[0].uri, config.data.manifest)
    run = Path(config.run_dir).absolute()
    fixed = {"run_dir": str(run), "data.manifest": absolute_path(config.data.manifest)}
    if config.data.root:
        fixed["data.root"] = absolute_path(config.data.root)
    argv = overrides_of(config) if config_dir else overrides
    return Task("pretrain", ["pretrain", *_fix(argv, fixed)], run, True, to_plain_dict(config))


def evaluate_task(run_dir: Path, overrides: list[str]) -> Task:
    run = run_dir.absolute()
    config = compose_evaluation(run, overrides)
    paths = {"manifest": config.manifest, "root": config.root}
    fixed = {key: absolute_path(path) for key, path in paths.items() if path}
    argv = ["evaluate", str(run), *_fix(overrides, fixed)]
    return Task("evaluate", argv, run, False, to_plain_dict(config))


def prepare_task(arguments: list[str]) -> Task:
    """The job runs in the folder of the submission, so paths stay as they are."""
    parsed = parse_command(["prepare", *arguments])
    if not Path(parsed.root).is_dir():
        raise UserError(f"prepare: there is no folder {parsed.root}.")
    config = {key: value for key, value in vars(parsed).items() if key not in ("run", "parser")}
    return Task("prepare", ["prepare", *arguments], Path(parsed.out).absolute(), False, config)


def compare_task(runs: list[Path], out: Path) -> Task:
    return Task("compare", ["compare", *map(str, runs), "--out", str(out)], out, False, {})


def parse_task(
    name: str, arguments: list[str], world_sizes: list[int], config_dir: Path | None = None
) -> Task:
    """The task that the arguments of `mofore submit NAME ...` describe."""
    if name == "prepare":
        return prepare_task(arguments)
    parsed = parse_command([name, *arguments])
    if name == "evaluate":
        return evaluate_task(parsed.run_dir, parsed.keys)
    return pretrain_task(parsed.keys, world_sizes, config_dir)


def _fix(overrides: list[str], fixed: dict[str, str]) -> list[str]:
    """The overrides with these values in place of the ones they have."""
    others = [each for each in overrides if each.partition("=")[0] not in fixed]
    return [*others, *(to_override(key, value) for key, value in fixed.items())]


def check_first_video(uri: str, manifest: str) -> None:
    """UserError if the first video of a manifest cannot be opened."""
    try:
        with fsspec.open(uri, "rb") as file:
            file.read(1)
    except Exception as error:  # each file system has its own exceptions
        raise UserError(
            f"{uri}, the first video of {manifest}, cannot be opened: {error}. "
            "Prepare the manifest again."
        ) from error


def absolute_path(path: str) -> str:
    """A path that holds in any working directory; URLs are unchanged."""
    return path if "://" in path else str(Path(path).absolute())
