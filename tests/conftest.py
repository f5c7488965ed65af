"""Shared: a small prepared dataset, and training in this process."""

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Equal to the last bit means equal thread counts too: here, in ranks, and in whatever else a test
# starts.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
import torch.distributed as dist

from mofore.config import PretrainConfig, compose
from mofore.data.prepare import prepare
from mofore.data.synthetic import write_motion_videos
from tests.ranks import warm_up
from tests.small import SMALL

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)
warm_up()

CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def arithmetic_settings() -> dict[str, object]:
    """What changes the last bits of later results in this process."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "default dtype": torch.get_default_dtype(),
        "F.linear, which DeepSpeed replaces at ZeRO-3": torch.nn.functional.linear,
    }


@pytest.fixture(autouse=True)
def same_arithmetic() -> Iterator[None]:
    """No test may change how later ones compute."""
    before, precision = arithmetic_settings(), torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)  # each run sets it
    assert arithmetic_settings() == before


@pytest.fixture
def zero3(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test that builds an engine of ZeRO-3 here: DeepSpeed then replaces torch's linear for
    the whole process, and later runs would round differently.
    """
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)


@pytest.fixture
def cuda(request: pytest.FixtureRequest) -> torch.device:
    """The first GPU. Without one the test is skipped, and the report says what was not tested."""
    if not torch.cuda.is_available():
        what = request.node.name.removeprefix("test_").replace("_", " ")
        reason = f"untested here, no GPU: {what}"
        assert "gpu" not in os.environ.get("MOFORE_REQUIRE", ""), reason
        pytest.skip(reason)
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium. Without it, or without playwright, the test is skipped."""
    chromium = shutil.which("chromium")
    if chromium is None or find_spec("playwright") is None:
        reason = "needs chromium and playwright: apt-get install chromium; pip install playwright"
        assert "browser" not in os.environ.get("MOFORE_REQUIRE", ""), reason
        pytest.skip(reason)
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def motion_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 40 videos (8 motions of 5 textures, 64 x 64, 32 frames at 24 fps) with lists beside
    them.
    """
    root = tmp_path_factory.mktemp("motion") / "videos"
    write_motion_videos(root, textures=5, frames=32)
    return root


@pytest.fixture(scope="session")
def manifest(motion_videos: Path) -> Path:
    """The manifest of `motion_videos`; every fifth texture is test."""
    lists = [str(motion_videos / name) for name in ("trainlist01.txt", "testlist01.txt")]
    out = motion_videos.parent / "data"
    return Path(
        prepare(
            motion_videos, out, splits=lists, groups=str(motion_videos / "groups.tsv"), workers=1
        ).manifest
    )


@pytest.fixture(scope="session")
def _ranks() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture
def environment(_ranks: None) -> Iterator[None]:
    """`train` makes this process a rank; processes that later tests start must not take themselves
    for one.
    """
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ |= before


@pytest.fixture
def run_small(environment: None, manifest: Path) -> Callable[..., Path]:
    """Train SMALL in this process: run_small(run_dir, *overrides) -> run_dir."""
    from mofore.train import train

    def run(run_dir: Path, *overrides: str) -> Path:
        fixed = [*SMALL, f"data.manifest={manifest}", f"run_dir={run_dir}"]
        train(compose(PretrainConfig, [*fixed, *overrides]))
        return run_dir

    return run
