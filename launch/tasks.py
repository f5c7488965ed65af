"""The words of a task, checked as far as they can be before a job starts, with paths that hold from anywhere.

["task=evaluate", "run=RUN", ...] -> Task(name, words of `mofore NAME`, run folder)
"""

from pathlib import Path
from typing import NamedTuple

import fsspec

from mofore.config import PretrainConfig, to_plain_dict, compose, flatten_dict
from mofore.data.manifest import read_manifest
from mofore.errors import UserError
from mofore.evaluation.config import EvaluateConfig
from mofore.launch import cli

TASKS = ("pretrain", "evaluate", "prepare")


class Task(NamedTuple):
    name: str
    words: list[str]  # of `mofore`, the name first
    run: Path  # folder whose jobs/ has the logs; for a preparation the folder that it writes
    ranks: bool  # does it take more than one process?
    config: dict  # resolved, for people to read


def parse_task(words: list[str], worlds: list[int]) -> Task:
    """UserError where the words are wrong, the data out of reach, or a batch does not divide over one of `worlds`."""
    names = [word.removeprefix("task=") for word in words if word.startswith("task=")]
    name = names[-1] if names else "pretrain"
    rest = [word for word in words if not word.startswith("task=")]
    if name == "pretrain":
        return _pretrain(rest, worlds)
    if name == "evaluate":
        return _evaluate(rest)
    if name == "prepare":
        return _prepare(rest)
    raise UserError(f"task={name}: choose {', '.join(TASKS)}.")


def _pretrain(words: list[str], worlds: list[int]) -> Task:
    config = compose(PretrainConfig, words)
    for world in worlds:
        config.split_batch(world)
    manifest = read_manifest(config.data.manifest)
    check_reach(manifest[0].uri, config.data.manifest)
    run = Path(config.run_dir).absolute()
    fixed = [
        to_override("run_dir", str(run)),
        to_override("data.manifest", absolute_path(config.data.manifest)),
    ]
    kept = [word for word in words if not word.startswith(("run_dir=", "data.manifest="))]
    return Task("pretrain", ["pretrain", *kept, *fixed], run, True, to_plain_dict(config))


def _evaluate(words: list[str]) -> Task:
    config = compose(EvaluateConfig, words)
    run = Path(config.run).absolute()
    fixed = [to_override("run", str(run))]
    fixed += [to_override("manifest", absolute_path(config.manifest))] if config.manifest else []
    kept = [word for word in words if not word.startswith(("run=", "manifest="))]
    return Task("evaluate", ["evaluate", *kept, *fixed], run, False, to_plain_dict(config))


def _prepare(words: list[str]) -> Task:
    asked = cli.build_parser().parse_args(["prepare", *words])
    if not Path(asked.root).is_dir():
        raise UserError(f"task=prepare: there is no folder {asked.root}.")
    # the job runs in the folder it was submitted from, so paths stay as they were given
    return Task(
        "prepare",
        ["prepare", *words],
        Path(asked.out).absolute(),
        False,
        vars(asked) | {"run": None},
    )


def check_reach(uri: str, manifest: str) -> None:
    """UserError where the first video of a manifest does not open."""
    try:
        with fsspec.open(uri, "rb") as file:
            file.read(1)
    except Exception as reason:  # each file system has exceptions of its own
        raise UserError(
            f"{uri}, the first video of {manifest}, does not open: {reason}. Make the manifest again."
        ) from reason


def absolute_path(path: str) -> str:
    """A path that holds in any working directory; a URL is left as it is."""
    return path if "://" in path else str(Path(path).absolute())


def to_override(key: str, value: object) -> str:
    """KEY=VALUE as hydra reads it, whatever characters the value has."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"{key}={value}"
    if isinstance(value, list):
        return f"{key}=[{','.join(to_override('', item)[1:] for item in value)}]"
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"


def overrides_of(config: PretrainConfig) -> list[str]:
    """The words that compose this configuration, a word a key."""
    return [to_override(key, value) for key, value in flatten_dict(to_plain_dict(config)).items()]
