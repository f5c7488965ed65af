"""Which checkpoints a run has, by listing its folder. Without torch, so that a look at many runs is quick."""

from pathlib import Path


def committed(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every committed checkpoint, oldest first; a folder of any other name is somebody's own copy."""
    folders = (run_dir / "checkpoints").glob("step-*")
    steps = [(path.name.removeprefix("step-"), path) for path in folders]
    return sorted((int(step), path) for step, path in steps if step.isdecimal())
