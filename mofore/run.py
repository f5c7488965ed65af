"""The run folder: whose it is, and what it was made with.

config.yaml (resolved), environment.json, metrics.jsonl, tensorboard/, checkpoints/, evaluation/, report.html;
bad_steps.jsonl where the run went back; owner.json while it is trained, lock
"""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from mofore.checkpoint import Checkpoint, find_checkpoint, teacher_weights
from mofore.config import PretrainConfig, asdict_plain, flatten, read_config, write_config
from mofore.data.manifest import replacing
from mofore.distributed import from_rank_0, rank
from mofore.errors import UserError
from mofore.export import write_encoder
from mofore.models.encoder import VideoEncoder
from mofore.pretraining import Pretraining, build_pretraining

# What may differ when a run goes on: it changes how the work is done, not what is computed.
FREE = (
    "run_dir",
    "workers",
    "micro_batch",
    "engine.",
    "checkpoint.",
    "guard.",
    "watch.",
    "data.manifest",
    "backbone.checkpoint_every",
)
SNAPSHOT = "snapshot.json"  # beside the packages, where they are a copy made for a job
PACKAGES = ("torch", "deepspeed", "timm", "decord", "numpy", "safetensors", "pyarrow")


def check_run(config: PretrainConfig, run_dir: Path) -> None:
    """UserError where the run folder belongs to another configuration."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    there, here = flatten(asdict_plain(read_config(path))), flatten(asdict_plain(config))
    other = [key for key in here if there[key] != here[key] and not key.startswith(FREE)]
    if other:
        differences = "; ".join(f"{key}={there[key]} there, {here[key]} here" for key in other[:5])
        raise UserError(
            f"{run_dir} is the run folder of another configuration ({differences}). "
            "Give another run_dir, or these values to go on with that run."
        )


def claim_run(config: PretrainConfig, run_dir: Path, manifest_digest: str, world_size: int) -> None:
    """Make the run folder with config.yaml and environment.json: enough to know what a number was made with."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with replacing(run_dir / "config.yaml") as temporary:
        write_config(config, Path(temporary))
    facts = {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": code_commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "world_size": world_size,
        "manifest_digest": manifest_digest,
    }
    with replacing(run_dir / "environment.json") as temporary:
        Path(temporary).write_text(json.dumps(facts, indent=1))


@contextlib.contextmanager
def hold_run(run_dir: Path) -> Iterator[None]:
    """While within, no other run can write to this folder; every rank calls it. UserError names who holds it.

    The kernel lets go of the lock when its holder dies, however it dies, so no lock is ever stale.
    """
    lock, owner, fault = FileLock(run_dir / "lock"), run_dir / "owner.json", None
    if rank() == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=2)  # who only looks whether a run lives holds it for an instant
        except Timeout:
            fault = _held(run_dir, owner)
        except (OSError, NotImplementedError) as reason:
            print(
                f"mofore: {run_dir} cannot be locked ({reason}): see that only one run writes to it.",
                file=sys.stderr,
            )
    fault = from_rank_0(fault)
    if fault:
        raise UserError(fault)
    if rank() == 0:
        facts = {"host": platform.node(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID"),
                 "since": time.strftime("%Y-%m-%d %H:%M:%S")}  # fmt: skip
        with replacing(owner) as temporary:
            Path(temporary).write_text(json.dumps(facts))
    try:
        yield
    finally:
        if rank() == 0:
            owner.unlink(missing_ok=True)
            lock.release()


def _held(run_dir: Path, owner: Path) -> str:
    try:
        facts = json.loads(owner.read_text())
        job = f", SLURM job {facts['job']}" if facts["job"] else ""
        who = f"process {facts['pid']} on {facts['host']}{job}, since {facts['since']}"
    except (OSError, ValueError):
        who = "a process that has just begun"
    return f"{run_dir} is in use by {who}. Wait for it, end it, or choose another run_dir."


def code_commit() -> str | None:
    """The git commit of this code, with "+changes" where the tree differs from it; None outside a checkout.

    A job runs from a copy of the code, which says what it was copied from.
    """
    root = Path(__file__).parent.parent
    if (root / SNAPSHOT).is_file():
        return json.loads((root / SNAPSHOT).read_text())["commit"]
    ask = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--match", ""]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git in this container
        return None
    return answer.stdout.strip() or None


def newest_checkpoint(run_dir: Path) -> Checkpoint:
    """The newest whole checkpoint of a run; UserError where it has none."""
    if not run_dir.is_dir():
        raise UserError(f"there is no run folder {run_dir}.")
    found, faults = find_checkpoint(run_dir)
    for fault in faults:
        print(f"mofore: {fault}", file=sys.stderr)
    if found is None:
        raise UserError(
            f"{run_dir} has no checkpoint yet: pretrain it first, `mofore pretrain run_dir={run_dir} ...`."
        )
    return found


def load_pretraining(run_dir: Path) -> tuple[Pretraining, PretrainConfig, Checkpoint]:
    """The run's newest student, teacher and forecaster, on the CPU and in eval mode."""
    config, checkpoint = read_config(run_dir / "config.yaml"), newest_checkpoint(run_dir)
    model = build_pretraining(config.model(), config.seed)
    checkpoint.load_weights(model)
    return model.eval(), config, checkpoint


def load_teacher(run_dir: Path) -> tuple[VideoEncoder, PretrainConfig, Checkpoint]:
    """The run's newest teacher, on the CPU and in eval mode."""
    config, checkpoint = read_config(run_dir / "config.yaml"), newest_checkpoint(run_dir)
    encoder = VideoEncoder(config.backbone, config.data.frames, config.data.size)
    encoder.load_state_dict(teacher_weights(checkpoint))
    return encoder.eval(), config, checkpoint


def export_run(run_dir: Path, out: Path) -> Checkpoint:
    """The run's newest teacher as encoder.safetensors and encoder.json; returns the checkpoint it came from."""
    encoder, config, checkpoint = load_teacher(run_dir)
    source = {
        "run": run_dir.name,
        "step": checkpoint.step,
        "digest": checkpoint.digest,
        "commit": code_commit(),
    }
    write_encoder(
        encoder, config.backbone, config.data.frames, config.data.fps, config.data.size, source, out
    )
    return checkpoint
