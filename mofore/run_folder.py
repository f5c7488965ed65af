"""The run folder: which run it belongs to, what made it, and the models in it.

config.yaml (resolved), environment.json, metrics.jsonl, tensorboard/, logs/, checkpoints/,
evaluation/, report.html; bad_updates.jsonl after a rollback; owner.json and lock while it is
trained
"""

import contextlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from mofore.checkpoint.reader import Checkpoint, find_latest_checkpoint, teacher_weights
from mofore.config import PretrainConfig, flatten_dict, read_config, to_plain_dict, write_config
from mofore.errors import UserError
from mofore.export import write_encoder
from mofore.files import write_json
from mofore.models.encoder import VideoEncoder
from mofore.models.objective import Pretraining, build_pretraining
from mofore.parallel.collectives import broadcast_object, get_rank

logger = logging.getLogger(__name__)

# Keys that may change when a run is resumed: they affect how the work is done, not what is
# computed.
RESUMABLE_KEYS = (
    "run_dir",
    "workers",
    "micro_batch",
    "wandb_project",
    "engine.",
    "checkpoint.",
    "bad_updates.",
    "collapse.",
    "data.manifest",
    "data.root",
    "backbone.grad_checkpoint_every",
)
SNAPSHOT_NAME = "snapshot.json"  # beside the package, if it is a copy made for a job
PACKAGES = ("torch", "deepspeed", "timm", "av", "decord", "numpy", "safetensors", "pyarrow")


def check_same_config(config: PretrainConfig, run_dir: Path) -> None:
    """Raise UserError if the run folder belongs to another configuration."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    there = flatten_dict(to_plain_dict(read_config(path)))
    here = flatten_dict(to_plain_dict(config))
    changed = [
        key for key in here if not key.startswith(RESUMABLE_KEYS) and there[key] != here[key]
    ]
    if changed:
        differences = "; ".join(
            f"{key}={there[key]} there, {here[key]} here" for key in changed[:5]
        )
        raise UserError(
            f"{run_dir} is the run folder of another configuration ({differences}). Give another "
            "run_dir, or its values to resume that run."
        )


def write_metadata(
    config: PretrainConfig, run_dir: Path, manifest_digest: str, world_size: int
) -> None:
    """Create the run folder with config.yaml and environment.json (versions, commit, host)."""
    run_dir.mkdir(parents=True, exist_ok=True)
    write_config(config, run_dir / "config.yaml")
    environment = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": code_commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "world_size": world_size,
        "manifest_digest": manifest_digest,
    }
    write_json(run_dir / "environment.json", environment)


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Inside, no other run can write to this folder; every rank calls it.

    UserError names the owner.

    The kernel releases the lock when its holder dies, however it dies, so no lock is ever stale.
    """
    lock, owner_path, fault = FileLock(run_dir / "lock"), run_dir / "owner.json", None
    if get_rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            # `mofore jobs` holds it for an instant to see whether a run lives
            lock.acquire(timeout=2)
        except Timeout:
            fault = _describe_owner(run_dir, owner_path)
        except (OSError, NotImplementedError) as error:
            logger.warning(
                "%s cannot be locked (%s): make sure that only one run writes to it.",
                run_dir,
                error,
            )
    fault = broadcast_object(fault)
    if fault:
        raise UserError(fault)
    if get_rank() == 0:
        owner = {
            "host": platform.node(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        write_json(owner_path, owner)
    try:
        yield
    finally:
        if get_rank() == 0:
            owner_path.unlink(missing_ok=True)
            lock.release()


def _describe_owner(run_dir: Path, owner_path: Path) -> str:
    try:
        owner = json.loads(owner_path.read_text())
        job = f", SLURM job {owner['job']}" if owner["job"] else ""
        name = f"process {owner['pid']} on {owner['host']}{job}, since {owner['since']}"
    except (OSError, ValueError):
        name = "a process that has just started"
    return f"{run_dir} is in use by {name}. Wait for it, end it, or choose another run_dir."


def code_commit() -> str | None:
    """The git commit, with "+changes" if the working tree differs; None outside a checkout.

    A job runs from a copy of the code, which records the commit that it was copied from.
    """
    root = Path(__file__).parent.parent
    if (root / SNAPSHOT_NAME).is_file():
        return json.loads((root / SNAPSHOT_NAME).read_text())["commit"]
    describe = ["describe", "--always", "--abbrev=40", "--dirty=+changes", "--match", ""]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *describe], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git in this container
        return None
    return answer.stdout.strip() or None


def load_latest_checkpoint(run_dir: Path) -> Checkpoint:
    """The newest undamaged checkpoint of a run; UserError if it has none."""
    if not run_dir.is_dir():
        raise UserError(f"There is no run folder {run_dir}.")
    checkpoint, faults = find_latest_checkpoint(run_dir)
    for fault in faults:
        logger.warning("%s", fault)
    if checkpoint is None:
        raise UserError(
            f"{run_dir} has no checkpoint yet: pretrain first, "
            f"`mofore pretrain run_dir={run_dir} ...`."
        )
    return checkpoint


def load_pretraining(run_dir: Path) -> tuple[Pretraining, PretrainConfig, Checkpoint]:
    """The run's newest student, teacher and forecaster, on the CPU in eval mode."""
    config, checkpoint = read_config(run_dir / "config.yaml"), load_latest_checkpoint(run_dir)
    model = build_pretraining(config.model(), config.seed)
    checkpoint.load_weights(model)
    return model.eval(), config, checkpoint


def load_teacher(run_dir: Path) -> tuple[VideoEncoder, PretrainConfig, Checkpoint]:
    """The run's newest teacher, on the CPU in eval mode."""
    config, checkpoint = read_config(run_dir / "config.yaml"), load_latest_checkpoint(run_dir)
    data = config.data
    encoder = VideoEncoder(config.backbone, data.frames, data.size, data.fps)
    encoder.load_state_dict(teacher_weights(checkpoint))
    return encoder.eval(), config, checkpoint


def export_run(run_dir: Path, out: Path) -> Checkpoint:
    """Export the run's newest teacher into the folder `out`; return its checkpoint."""
    encoder, config, checkpoint = load_teacher(run_dir)
    source = {
        "run": run_dir.name,
        "step": checkpoint.step,
        "digest": checkpoint.digest,
        "commit": code_commit(),
    }
    write_encoder(encoder, source, out)
    return checkpoint
