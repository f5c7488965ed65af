"""Every command in the documentation parses, composes and names what exists."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from mofore.config import PretrainConfig, compose
from mofore.evaluation.config import EvaluateConfig
from mofore.launch import cli, submit
from mofore.launch.arguments import parse
from mofore.launch.cluster import ClusterConfig
from mofore.launch.plan import compose_plan
from mofore.launch.profiler import compose_profile
from tests.pages import IDS, PAGES, REPOSITORY, blocks, spans

PROGRAMS = ("mofore", "python", "make", "pytest", "torchrun")
SHELL = ("git", "cd", "source", "eval", "python3.11", ".venv/bin/pip")  # setup, not ours to check


def commands(path: Path) -> list[str]:
    """Every command of the page's bash blocks, one string each."""
    lines = "\n".join(blocks(path.read_text(), "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.startswith(("#", *SHELL))]


def check_env(argv: list[str]) -> list[str]:
    """Drop leading NAME=VALUE assignments of a command; the variables must occur in the tests."""
    while len(argv) > 1 and (match := re.fullmatch(r"([A-Z_]+)=.*", argv[0])):
        used = [path.read_text() for path in (REPOSITORY / "tests").rglob("*.py")]
        assert any(match[1] in text for text in used), argv[0]
        argv = argv[1:]
    return argv


def check_paths(arguments: list[str]) -> None:
    """The paths of a pytest command."""
    paths = [each.split("::")[0] for each in arguments if not each.startswith("-")]
    assert all((REPOSITORY / path).exists() for path in paths), paths


@pytest.fixture
def project(tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the commands name, YAML examples of the pages among
    them.
    """
    for folder in ("data/mine", "data/other", "data/ucf101", "demo/data"):
        (tmp_path / folder).mkdir(parents=True)
        shutil.copy(manifest, tmp_path / folder / "manifest.parquet")
    for name in ("VIDEOS", "UCF-101"):
        (tmp_path / name).mkdir()
    configs = tmp_path / "project/configs"
    for page, target in (("configuration", "experiment/mine"), ("clusters", "cluster/ours")):
        (example,) = blocks((REPOSITORY / f"docs/{page}.md").read_text(), "yaml")
        (configs / target).parent.mkdir(parents=True)
        (configs / f"{target}.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_commands(path: Path, project: Path, capsys: pytest.CaptureFixture) -> None:
    for command in commands(path):
        argv = check_env(shlex.split(command))
        assert argv[0] in PROGRAMS, command
        if argv[0] == "mofore":
            check_mofore(argv[1:])
        elif argv[:2] == ["python", "launch/submit.py"]:
            check_submit(argv[2:])
        elif argv[0] == "torchrun":
            check_torchrun(argv)
        else:
            check_other(argv)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_commands_in_prose_and_tables(path: Path) -> None:
    """Inline commands may leave arguments out, so only what they name is checked."""
    names = subcommands(cli.build_parser())
    for span in spans(path.read_text()):
        argv = check_env(span.split())
        if len(argv) < 2 or argv[1] == "COMMAND":
            continue
        if argv[0] == "mofore":
            assert argv[1] in names, span
        elif argv[0] in ("python", "make", "pytest"):
            check_other(argv)


def subcommands(parser) -> set[str]:
    """Names of the commands of `mofore`."""
    (action,) = [each for each in parser._actions if each.choices and each.metavar == "COMMAND"]
    return set(action.choices)


def check_other(argv: list[str]) -> None:
    """make, pytest and python -m: the target, the path, the module exists."""
    if argv[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        for target in argv[1:]:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), argv
    elif argv[0] == "pytest":
        check_paths(argv[1:])
    elif argv[1] == "-m":
        module = REPOSITORY / f"{argv[2].replace('.', '/')}.py"
        assert module.exists(), argv
    else:
        assert (REPOSITORY / argv[1]).exists(), argv


def check_mofore(argv: list[str]) -> None:
    """The command parses; its overrides compose."""
    if argv[0] == "submit":
        check_submit(argv[1:])
        return
    if "--help" in argv:
        with pytest.raises(SystemExit) as end:
            cli.main(argv)
        assert end.value.code == 0, argv
        return
    arguments = parse(cli.build_parser(), argv)
    config_dir = getattr(arguments, "config_dir", None)
    if argv[0] in ("pretrain", "config") or argv[:2] == ["data", "views"]:
        compose(PretrainConfig, arguments.keys, config_dir)
    elif argv[0] == "plan":
        compose_plan(arguments.keys, config_dir)
    elif argv[0] == "profile":
        compose_profile(arguments.keys, config_dir)
    elif argv[0] == "demo":
        fixed = ["experiment=demo", "data.manifest=MANIFEST"]
        compose(PretrainConfig, [*fixed, *arguments.keys])
    elif argv[0] == "evaluate":
        compose(EvaluateConfig, [f"run={arguments.run_dir}", *arguments.keys])


def check_torchrun(argv: list[str]) -> None:
    """The ranks of a training or of a profile."""
    if argv[3:6] == ["-m", "mofore.launch.cli", "profile"]:
        check_mofore(argv[5:])
        return
    assert argv[3:5] == ["-m", "mofore.train"], argv
    compose(PretrainConfig, argv[5:])


def check_submit(argv: list[str]) -> None:
    """The dry run of a submission prints its plan and exits with 0."""
    dry = [] if "--dry-run" in argv or "--help" in argv else ["--dry-run"]
    try:
        code = submit.main([*argv, *dry])
    except SystemExit as end:  # --help
        code = end.code
    assert code == 0, argv


def test_cluster_example() -> None:
    (text,) = blocks((REPOSITORY / "docs/clusters.md").read_text(), "yaml")
    ClusterConfig(**yaml.safe_load(text))
