"""What the README says can be done: every command exists, every key composes, the Python example runs."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml

from benchmarks import learning
from launch.cli import build_parser
from launch.cluster import ClusterConfig
from launch.submit import cluster_of, split_words
from launch.sweep import sweep_words
from mofore.config import EvaluateConfig, PretrainConfig, compose, expand
from mofore.data.manifest import replacing
from mofore.export import write_encoder
from mofore.models.encoder import BackboneConfig, VideoEncoder

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text()
CLUSTER = (REPOSITORY / "launch/README.md").read_text()
BENCHMARKS = (REPOSITORY / "benchmarks/README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    lines = [line for block in blocks("bash", text) for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "git"))]


COMMANDS = [command for text in (README, CLUSTER, BENCHMARKS) for command in commands(text)]
TABLES = [
    (command, text) for text in (README, BENCHMARKS) for command in commands(text)
    if "benchmarks.learning" in command and "--show" in command
]  # fmt: skip


def check_submit(words: list[str]) -> None:
    ours, rest = split_words([word for word in words if word not in ("--dry-run", "--multirun")])
    cluster_of(ours)
    if rest[0] == "task=prepare":
        build_parser().parse_args(["prepare", *rest[1:]])
    elif rest[0] == "task=evaluate":
        compose(EvaluateConfig, rest[1:])
    elif "--multirun" in words or any(word.startswith("sweep=") for word in rest):
        for common, varied in expand(sweep_words(rest)):
            compose(PretrainConfig, [*common, *varied])
    else:
        compose(PretrainConfig, rest)


def test_cluster_example() -> None:
    (text,) = blocks("yaml", CLUSTER)
    ClusterConfig(**yaml.safe_load(text))


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["python", "launch/submit.py"]:
        check_submit(words[2:])
    elif words[0] == "torchrun":
        assert words[3:5] == ["-m", "mofore.train"]
        compose(PretrainConfig, words[5:])
    elif words[:2] == ["python", "-m"]:
        assert (REPOSITORY / f"{words[2].replace('.', '/')}.py").exists()
    else:
        assert words[0] == "mofore"
        arguments = build_parser().parse_args(words[1:])
        if words[1] == "pretrain":
            compose(PretrainConfig, arguments.keys)
        if words[1] == "evaluate":
            compose(EvaluateConfig, arguments.keys)


@pytest.mark.parametrize(("command", "text"), TABLES, ids=[command for command, _ in TABLES])
def test_a_table_is_what_the_results_file_has(
    command: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = shlex.split(command)
    drawn = words.index("--picture") if "--picture" in words else len(words)
    monkeypatch.setattr("sys.argv", [words[2], *words[3:drawn], *words[drawn + 2 :]])
    assert learning.main() == 0
    assert capsys.readouterr().out in text


def test_benchmarks_exist() -> None:
    named = set(re.findall(r"python -m benchmarks\.(\w+)", README + BENCHMARKS)) - {"NAME"}
    assert named
    assert all((REPOSITORY / f"benchmarks/{name}.py").exists() for name in named), named


def test_named_tests_exist() -> None:
    named = re.findall(r"`pytest (\S+?)`", README)
    assert named
    assert all((REPOSITORY / path).exists() for path in named), named


def test_named_files_exist() -> None:
    tree = README.split("## The house")[1].split("```")[1]
    folder = ""
    for line in tree.strip().splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        path = REPOSITORY / (name if name == folder else folder + name)
        assert path.exists(), path


def test_python_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    backbone = BackboneConfig(embed_dim=32, depth=1, num_heads=2, patch=8)
    encoder = VideoEncoder(backbone, frames=4, size=16)
    write_encoder(encoder, backbone, 4, 12.0, 16, {"run": "none"}, tmp_path / "encoders/mine")
    (example,) = blocks("python")
    with replacing(tmp_path / "example.py") as temporary:
        Path(temporary).write_text(example)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    assert capsys.readouterr().out.strip() == "torch.Size([2, 32])"
