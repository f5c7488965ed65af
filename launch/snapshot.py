"""The code at submission -> RUN/jobs/code/DIGEST. Later edits do not affect queued jobs."""

import hashlib
import os
import shutil
from pathlib import Path

import mofore
from mofore.files import write_json
from mofore.run_folder import SNAPSHOT_NAME, code_commit

PACKAGE = Path(mofore.__file__).parent


def take_snapshot(jobs: Path) -> Path:
    """Copy the package to a folder named by its digest and return that; equal code is kept once."""
    digest = hashlib.sha256()
    for path in package_files():
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    snapshot = jobs / "code" / digest.hexdigest()[:12]
    if snapshot.exists():
        return snapshot
    temporary = snapshot.with_name(f"{snapshot.name}.{os.getpid()}.tmp")
    try:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PACKAGE, temporary / PACKAGE.name, ignore=ignore)  # follows symlinks
        write_json(temporary / SNAPSHOT_NAME, {"commit": code_commit()})
        temporary.rename(snapshot)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return snapshot


def package_files() -> list[Path]:
    """All files of the package; in a checkout launch, evaluation and configs are symlinks in it."""
    return sorted(
        Path(folder) / name
        for folder, _, names in os.walk(PACKAGE, followlinks=True)
        if Path(folder).name != "__pycache__"
        for name in names
    )
