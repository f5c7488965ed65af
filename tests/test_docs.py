"""The documentation is true where a test can tell: names exist, links resolve, examples run,
numbers agree.
"""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mofore.config import PretrainConfig, flatten_dict, to_plain_dict
from mofore.data.manifest import SCHEMA
from mofore.evaluation.config import EvaluateConfig
from mofore.export import write_encoder
from mofore.launch.cluster import ClusterConfig
from mofore.models.backbone import BackboneConfig
from mofore.models.encoder import VideoEncoder
from tests.pages import DOCS, IDS, PAGES, REPOSITORY, blocks, prose, spans, table_rows
from tests.videos import noise, write_video

RUN_FILES = (".json", ".npz")  # of a run folder


# ------------------------------------------------------------------------------------------ names


def known_keys() -> set[str]:
    pretrain = flatten_dict(to_plain_dict(PretrainConfig()))
    evaluate = flatten_dict(to_plain_dict(EvaluateConfig(run="RUN")))
    cluster = {f"cluster.{key}" for key in flatten_dict(to_plain_dict(ClusterConfig()))}
    return {*pretrain, *evaluate, *cluster}


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_keys_exist(path: Path) -> None:
    """Every `group.key` of the text is a key of a configuration; `group.*` is a group."""
    keys = known_keys()
    groups = {key.rpartition(".")[0] for key in keys if "." in key}
    for span in spans(path.read_text()):
        for key in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)+|[a-z_]+\.\*)(?![\w/.])", span):
            if key.endswith(".*"):
                assert key[:-2] in groups, span
            elif key.split(".")[0] in groups and not key.endswith(
                (".py", ".yaml", ".json", ".jsonl")
            ):
                assert key in keys or key in groups, span


def source() -> str:
    """All Python and templates of the product as one text, with strings that are split over lines
    joined.
    """
    folders = ("mofore", "evaluation", "launch")
    files = [file for folder in folders for file in (REPOSITORY / folder).rglob("*.py")]
    text = "\n".join(file.read_text() for file in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


@pytest.mark.parametrize("name", ["training", "evaluation"])
def test_metrics_exist(name: str) -> None:
    text, code = (REPOSITORY / f"docs/{name}.md").read_text(), source()
    names = [each for row in table_rows(text, "metric") for each in re.findall(r"`(\w+)`", row[0])]
    assert len(names) > 8
    for each in names:
        stem = re.sub(r"^retrieval_r\d+$", "retrieval_r", each)
        stem = stem.removeprefix("monitor_").removesuffix("_cosine")
        assert stem in code, each


def test_manifest_columns_are_listed() -> None:
    rows = table_rows((REPOSITORY / "docs/data.md").read_text(), "column")
    listed = {each for row in rows for each in re.findall(r"`(\w+)`", row[0])}
    assert listed == {*SCHEMA.names}


def test_messages_exist() -> None:
    """The messages in the table of docs/clusters.md, up to their variable parts."""
    rows = table_rows((REPOSITORY / "docs/clusters.md").read_text(), "message")
    code = source()
    messages = [message for row in rows for message in re.findall(r"`([^`]{20,})`", row[0])]
    assert len(messages) > 6
    for message in messages:
        parts = re.split(r"\.\.\.|: |\b(?:[A-Z]+|\d+|rank|sbatch)\b", message)
        longest = max((part.strip(" :=") for part in parts), key=len)
        assert longest in code, message


def test_architecture_lists_every_module() -> None:
    """The tree in docs/architecture.md has the modules of the product, no more and no less."""
    tree = blocks((REPOSITORY / "docs/architecture.md").read_text(), "")[0]
    listed, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            listed.add(f"{folder}{name}")
        else:
            folder = name
    there = {
        str(path.relative_to(REPOSITORY))
        for top in ("mofore", "mofore/*", "evaluation", "launch")
        for folder_path in REPOSITORY.glob(top)
        if folder_path.is_dir() and not folder_path.is_symlink()
        for path in folder_path.glob("*.py")
        if path.name != "__init__.py"
    }
    assert listed == there, listed ^ there


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_named_files_exist(path: Path) -> None:
    tops = ("mofore/", "launch/", "evaluation/", "configs/", "tests/", "benchmarks/", "docs/")
    for span in spans(path.read_text()):
        for name in re.findall(r"[\w./]+/[\w.]*", span):
            if name.startswith(tops) and "NAME" not in span and not name.endswith(RUN_FILES):
                assert (REPOSITORY / name).exists(), span


# ----------------------------------------------------------------------------------- links, build


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and mkdocs make them for plain headings."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize(
    "path", [*PAGES, REPOSITORY / "CHANGELOG.md", REPOSITORY / "benchmarks/README.md"]
)
def test_links_resolve(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_prose_is_wrapped(path: Path) -> None:
    text = prose(path.read_text())
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert not long, long


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """`mkdocs build --strict`; the pages load nothing from other hosts."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > len(DOCS)  # and 404.html
    for page in pages:
        html = page.read_text()
        assert not re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//", html), page
        assert not re.findall(r"<link[^>]* rel=\"?stylesheet[^>]*href=\"?(?:https?:)?//", html), (
            page
        )


# -------------------------------------------------------------------------------- examples, numbers


@pytest.mark.parametrize("name", ["README.md", "docs/getting-started.md", "docs/api.md"])
def test_python_examples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The Python blocks of a page run one after the other, on a small exported encoder and two
    videos.
    """
    backbone = BackboneConfig(embed_dim=32, depth=1, num_heads=2, patch_size=8)
    encoder = VideoEncoder(backbone, frames=4, size=16, fps=12.0)
    write_encoder(encoder, {"run": "none"}, tmp_path / "encoders/mine")
    for video in ("a.mp4", "b.mp4"):
        write_video(tmp_path / video, noise())
    code = "\n".join(blocks((REPOSITORY / name).read_text(), "python"))
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("example.py")
    shape = tuple(names["embeddings"].shape)
    assert shape == (2, 32)
    if name == "README.md":
        assert capsys.readouterr().out == "(2, 32)\n"
        assert names["embeddings"].dtype == np.float32


def test_readme_results_are_those_of_the_tables() -> None:
    """Every row of the README's results is, number by number, a row of docs/what-it-learns.md."""
    readme = table_rows((REPOSITORY / "README.md").read_text(), "recipe")
    tables = table_rows((REPOSITORY / "docs/what-it-learns.md").read_text(), "recipe")
    assert len(readme) == 5
    for recipe, *numbers in readme:
        rows = [row for row in tables if row[0] == recipe]
        assert any(all(number in row for number in numbers) for row in rows), recipe
