"""A wheel puts one name into site-packages and works without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.small import SMALL

REPOSITORY = Path(__file__).parent.parent
SOURCES = ("mofore", "launch", "evaluation", "configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy, so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        path = REPOSITORY / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(path, source / name)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), "."]
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *build], cwd=source, check=True)
    (found,) = folder.glob("mofore-*.whl")
    return found


def test_one_name_with_all_of_its_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mofore"}
    files = {name for name in names if name.startswith("mofore/")}
    for folder in ("launch", "evaluation", "configs"):
        here = REPOSITORY / folder
        for path in here.rglob("*"):
            if path.suffix in (".py", ".yaml", ".jinja"):
                assert f"mofore/{folder}/{path.relative_to(here)}" in files
    assert "mofore/py.typed" in files


@pytest.mark.slow
def test_an_installed_wheel_works_outside_the_checkout(wheel, tmp_path, motion_videos):
    """An empty environment: the wheel, and this environment's dependencies by path, without our own
    install.
    """
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = environment / "lib" / version / "site-packages"
    # A path inside a .pth file is added as it is: the .pth files there, our editable install, are
    # not read.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)], check=True
    )

    def run(*command: str) -> str:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=clean, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(str(python), "-c", "import mofore.launch; print(mofore.launch.__file__)")
    assert Path(where.strip()).is_relative_to(environment)
    mofore = str(environment / "bin" / "mofore")
    lists = [str(motion_videos / name) for name in ("trainlist01.txt", "testlist01.txt")]
    run(mofore, "prepare", str(motion_videos), "--out", "data", "--split", *lists, "--workers", "1")
    training = [*SMALL, "data.manifest=data/manifest.parquet", "steps=2"]
    run(mofore, "pretrain", *training, "run_dir=run")
    run(mofore, "evaluate", "run", "workers=0", "bootstrap_resamples=20", "knn_k=3")
    run(mofore, "submit", "cluster=debug", *training, "run_dir=submitted")
    assert (tmp_path / "run" / "evaluation" / "results.json").is_file()
    assert (tmp_path / "submitted" / "checkpoints" / "step-2").is_dir()
