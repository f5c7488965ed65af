"""Imports run downwards only; the heavy libraries have one door each."""

import ast
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
# From the bottom up; a module may import from its own line and from those above it in this list.
LAYERS = [
    ["mofore.errors", "mofore.listing"],
    ["mofore.types", "mofore.schedules", "mofore.distributed", "mofore.preemption", "mofore.collapse"],
    ["mofore.data", "mofore.models", "mofore.losses", "mofore.ema"],
    ["mofore.pretraining", "mofore.optim", "mofore.engine", "mofore.metrics", "mofore.export"],
    ["mofore.commit", "mofore.guard", "mofore.heartbeat", "mofore.watchdog"],
    ["mofore.checkpoint", "mofore.saving"],
    ["configs"],
    ["mofore.config"],
    ["mofore.run"],
    ["mofore.resume"],
    ["mofore.train"],
    ["evaluation"],
    ["launch"],
]


def layer(module: str) -> int | None:
    """The line of LAYERS that a module stands on; None for third parties."""
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    return None


def modules() -> dict[str, Path]:
    files = [path for top in ("mofore", "evaluation", "launch") for path in (REPOSITORY / top).rglob("*.py")]
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in files]
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_run_downwards() -> None:
    upward = []
    for module, path in modules().items():
        own = layer(module)
        if module == "mofore":  # the door: it hands out load_encoder
            continue
        assert own is not None, f"{module} stands on no layer: add it to LAYERS"
        for imported in imports(path):
            other = layer(imported)
            if other is not None and other > own:
                upward.append(f"{module} imports {imported}")
    assert not upward, upward


def test_each_heavy_library_has_one_door() -> None:
    doors = {
        "deepspeed": {"mofore.engine"},
        "hydra": {"mofore.config"},
        "submitit": {"launch.cluster", "launch.submit", "launch.jobs"},
    }
    for library, allowed in doors.items():
        users = {
            module
            for module, path in modules().items()
            if any(name.split(".")[0] == library for name in imports(path))
        }
        assert users == allowed, (library, users)


def test_import_mofore_is_light() -> None:
    heavy = ["deepspeed", "hydra", "submitit", "torch"]
    code = f"import sys, mofore; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout.strip() == "[]"
