"""Parsing: help, the order of arguments, and the forms of errors."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import mofore
from mofore.launch import submit
from mofore.launch.arguments import CommandParser, parse
from mofore.launch.cli import build_parser, main
from mofore.launch.cluster import ClusterConfig

COMMANDS = [
    "prepare",
    "pretrain",
    "evaluate",
    "report",
    "export",
    "compare",
    "data",
    "config",
    "plan",
    "profile",
    "submit",
    "jobs",
    "logs",
    "cancel",
    "resume",
    "demo",
]
KEYS = {
    "pretrain": "data.token_keep_ratio",
    "config": "data.token_keep_ratio",
    "plan": "data.token_keep_ratio",
    "profile": "data.token_keep_ratio",
    "evaluate": "knn_temperature",
    "submit": "cluster.network_interface",
}


def help_of(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as end:
        main([*argv, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def subparsers(parser: CommandParser) -> dict[str, CommandParser]:
    (action,) = [each for each in parser._actions if each.metavar == "COMMAND"]
    return dict(action.choices or {})  # type: ignore[call-overload]


def test_commands(capsys: pytest.CaptureFixture) -> None:
    assert list(subparsers(build_parser())) == COMMANDS
    text = help_of([], capsys)
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, capsys: pytest.CaptureFixture) -> None:
    """A usage line, a description, every argument with its help, an example, the keys."""
    text = help_of([name], capsys)
    assert text.startswith(f"usage: mofore {name} ")
    assert "examples:\n  mofore" in text
    parser = subparsers(build_parser())[name]
    assert parser.description
    assert all(action.help for action in parser._actions)
    assert (name in KEYS) == ("\nkeys:\n" in text)
    assert KEYS.get(name, "") in text
    assert "= " not in parser.format_usage()


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name: str) -> None:
    parser = build_parser()
    epilog = subparsers(parser)[name].epilog or ""
    for line in epilog.splitlines()[1:]:
        argv = line.split()[1:]
        assert argv[0] == name
        assert parse(parser, argv).run


def test_every_key_of_a_cluster_is_described(capsys: pytest.CaptureFixture) -> None:
    lines = help_of(["submit"], capsys).splitlines()
    for field in dataclasses.fields(ClusterConfig):
        description = field.metadata["description"]
        assert description.endswith(".")
        (line,) = [each for each in lines if each.startswith(f"cluster.{field.name} ")]
        assert line.endswith(description)


def test_submit_script_has_the_same_help(capsys: pytest.CaptureFixture) -> None:
    of_command = help_of(["submit"], capsys)
    with pytest.raises(SystemExit):
        submit.main(["--help"])
    of_script = capsys.readouterr().out
    assert of_script.replace("python launch/submit.py", "mofore submit") == of_command
    assert "`mofore TASK --help`" in of_script


def test_version(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mofore {mofore.__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["prepare", "--help"], ["--version"], ["jobs", "."]])
def test_light_commands_import_no_torch(argv: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom mofore.launch.cli import main\n"
        f"try: main({argv})\nexcept SystemExit: pass\n"
        "assert not {'torch', 'hydra', 'submitit', 'argcomplete'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    "argv",
    [
        ["config", "steps=1", "--config-dir", "here", "seed=2"],
        ["config", "--config-dir", "here", "steps=1", "seed=2"],
        ["config", "steps=1", "seed=2", "--config-dir", "here"],
    ],
)
def test_keys_and_flags_in_any_order(argv: list[str]) -> None:
    arguments = parse(build_parser(), argv)
    assert arguments.keys == ["steps=1", "seed=2"]
    assert arguments.config_dir == Path("here")


def test_submit_leaves_the_flags_of_its_task_in_order() -> None:
    argv = ["prepare", "VIDEOS", "--dry-run", "--out", "DIR", "cluster=slurm", "--split", "a", "b"]
    arguments = parse(build_parser(), ["submit", *argv])
    assert arguments.dry_run
    assert arguments.keys == [each for each in argv if each != "--dry-run"]


USAGE_ERRORS = {
    "no command": ([], "COMMAND"),
    "unknown command": (["train"], "train"),
    "no run": (["evaluate"], "RUN"),
    "run as a key": (["evaluate", "run=runs/a"], "not run=runs/a: write runs/a"),
    "run as a key, to report": (["report", "run=runs/a"], "write runs/a"),
    "key before the run": (["evaluate", "views=8"], "write the folder first: RUN views=8"),
    "no folder": (["export", "runs/a"], "DIR"),
    "old flag": (["export", "runs/a", "--out", "DIR"], "--out"),
    "unknown flag": (["pretrain", "--steps", "3"], "--steps"),
    "abbreviated flag": (["pretrain", "--config", "3"], "--config"),
    "not a number": (["logs", "runs/a", "--rank", "x"], "--rank"),
    "submit, no run": (["submit", "evaluate"], "RUN"),
    "submit, unknown flag": (["submit", "--steps", "3"], "--steps"),
    "submit, unknown flag of a task": (["submit", "evaluate", "runs/a", "--fast"], "--fast"),
}


@pytest.mark.parametrize("mistake", USAGE_ERRORS)
def test_usage_errors(mistake: str, capsys: pytest.CaptureFixture) -> None:
    argv, named = USAGE_ERRORS[mistake]
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code  # type: ignore[assignment]
    assert code == 2
    captured = capsys.readouterr()
    message = captured.err.splitlines()[-1]
    assert message.startswith("mofore: error: ")
    assert named in message
    assert captured.out == ""


def test_a_run_may_be_named_like_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the runs of a sweep are."""
    monkeypatch.chdir(tmp_path)
    Path("backbone=vit_tiny").mkdir()
    arguments = parse(build_parser(), ["evaluate", "backbone=vit_tiny", "views=8"])
    assert arguments.run_dir == Path("backbone=vit_tiny")
    assert parse(build_parser(), ["report", "runs/seed=0"]).run_dir == Path("runs/seed=0")
