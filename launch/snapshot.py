"""The code as it stands at submission -> RUN/jobs/code/DIGEST: what is edited afterwards changes nothing that is queued."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import mofore
from mofore.run_folder import SNAPSHOT_NAME, code_commit

PACKAGES = (mofore,)  # with launch, evaluation and configs as its subpackages


def take_snapshot(jobs: Path) -> Path:
    """Copy the packages that a job imports to a folder named by their digest, and return it; equal code is kept once."""
    sources = [Path(str(package.__file__)).parent for package in PACKAGES]
    files = sorted(
        path
        for source in sources
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(str(path.relative_to(sources[0].parent)).encode() + b"\0" + path.read_bytes())
    kept = jobs / "code" / digest.hexdigest()[:12]
    if kept.exists():
        return kept
    temporary = kept.with_name(f"{kept.name}.{os.getpid()}.tmp")
    try:
        for source in sources:
            shutil.copytree(
                source, temporary / source.name, ignore=shutil.ignore_patterns("__pycache__")
            )
        (temporary / SNAPSHOT_NAME).write_text(json.dumps({"commit": code_commit()}))
        temporary.rename(kept)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return kept
