"""Entry point of a rank: configuration -> ranks -> checkpoint -> engine -> Trainer.

torchrun --nproc_per_node 2 -m mofore.train experiment=demo data.manifest=DIR/manifest.parquet
"""

import logging
import os
import sys
from pathlib import Path

import torch

from mofore.compilation import should_compile
from mofore.config import PretrainConfig, compose
from mofore.data.dataset import usable_rows
from mofore.data.loader import resolve_workers
from mofore.data.manifest import Manifest, read_manifest
from mofore.errors import EXIT_INTERRUPTED, EXIT_RESUMABLE, EXIT_USER_ERROR, UserError
from mofore.logs import log_to_file, setup_logging
from mofore.open_files import check_open_files
from mofore.parallel.collectives import get_rank, get_world_size
from mofore.parallel.engine import start_ranks
from mofore.parallel.liveness import RESUME_HINT, Heartbeat, RankLost, rendezvous
from mofore.plan import suggest
from mofore.precision import resolve_precision
from mofore.run_folder import check_same_config, lock_run, write_metadata
from mofore.startup import (
    FILES_OF_A_RANK,
    build_training_engine,
    check_decoding_processes,
    find_resume_checkpoint,
    rank_sampler,
)
from mofore.trainer import Outcome, Trainer

logger = logging.getLogger("mofore.train")  # __name__ is __main__ under torchrun


def train(config: PretrainConfig) -> Outcome:
    """Train until `config.steps`, from the run folder's newest undamaged checkpoint if any.

    Raises UserError for what the user can fix, RankLost if a peer rank died or hangs.
    """
    run_dir, manifest = Path(config.run_dir), read_manifest(config.data.manifest, config.data.root)
    rows, too_short = usable_rows(manifest, config.data, clips=2)
    check_open_files(FILES_OF_A_RANK, "a rank")
    with rendezvous(config.engine.timeout):
        device = start_ranks(config.engine)
    check_same_config(config, run_dir)
    rank_sampler(config, len(rows), 0)  # raises before anything is written
    check_decoding_processes(config, device)
    with Heartbeat(config.engine.timeout) as heartbeat, lock_run(run_dir):
        log_to_file(run_dir, get_rank())
        heartbeat.set_activity("reads its checkpoint")
        checkpoint = find_resume_checkpoint(run_dir, manifest)
        if checkpoint and checkpoint.step >= config.steps:
            return Outcome(checkpoint.step, None)
        heartbeat.set_activity("builds the model")
        engine = build_training_engine(config, checkpoint, device)
        trainer = Trainer(config, engine, manifest, rows, checkpoint, heartbeat)
        if get_rank() == 0:
            write_metadata(config, run_dir, manifest.digest, get_world_size())
            _log_start(config, manifest, len(rows), too_short)
            _log_device(config, device)
        outcome = trainer.run()
        heartbeat.pause()  # rank 0 may upload for long, the others have nothing to do
        trainer.saver.close()
    return outcome


def _log_start(config: PretrainConfig, manifest: Manifest, videos: int, too_short: int) -> None:
    data = config.data
    logger.info("%d videos of %s; run folder %s", videos, manifest.path, config.run_dir)
    if too_short:
        logger.warning(
            "%d videos are left out: too short for two clips of %d frames at %g fps.",
            too_short,
            data.frames,
            data.fps,
        )
    slow = int((manifest.column("fps") < 0.99 * data.fps).sum())
    if slow:
        logger.warning(
            "%d videos have fewer frames per second than data.fps=%g: their clips repeat frames.",
            slow,
            data.fps,
        )


def _log_device(config: PretrainConfig, device: torch.device) -> None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    logger.info(
        "%d rank(s), this one on %s: %s, ZeRO stage %d, blocks %s, %d decoding processes per rank",
        get_world_size(),
        name,
        resolve_precision(config.engine.precision, device).value,
        config.engine.zero_stage,
        "compiled" if should_compile(config.engine, device) else "not compiled",
        resolve_workers(config.workers, device.type),
    )


def explain_out_of_memory(config: PretrainConfig, error: torch.OutOfMemoryError) -> str:
    """What does not fit, and what would, as far as `mofore plan` knows."""
    world_size, memory = get_world_size(), torch.cuda.get_device_properties().total_memory
    micro_batch, _ = config.split_batch(world_size)
    return (
        f"Rank {get_rank()}: out of GPU memory ({str(error).split('. ')[0]}) with micro_batch="
        f"{micro_batch}, engine.zero_stage={config.engine.zero_stage} and "
        f"backbone.grad_checkpoint_every={config.backbone.grad_checkpoint_every} on {world_size} "
        f"rank(s). {suggest(config, world_size, memory)} Checkpoints are intact."
    )


def main(overrides: list[str], config_dir: Path | None = None) -> int:
    """Run one rank and return its exit code.

    0: reached the last step; 2: a mistake to fix; 75 (EX_TEMPFAIL): preempted, or a peer rank was
    lost, rerun the same command to resume; 130: stopped at once by a second Ctrl-C.
    """
    setup_logging()
    try:
        config = compose(PretrainConfig, overrides, config_dir)
        outcome = train(config)
    except UserError as error:
        logger.error("%s", error)
        return EXIT_USER_ERROR
    except torch.OutOfMemoryError as error:
        logger.error("%s", explain_out_of_memory(config, error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        logger.error("Stopped at once; the last checkpoint is kept. %s", RESUME_HINT)
        os._exit(EXIT_INTERRUPTED)
    except RankLost as error:
        logger.error("Rank %d stops: %s. %s", get_rank(), error, RESUME_HINT)
        os._exit(EXIT_RESUMABLE)  # an orderly exit would wait for the lost rank
    if get_rank() == 0:
        where = f"{config.run_dir} (step {outcome.step} of {config.steps})"
        if outcome.stopped_by:
            logger.info("Stopped by %s: %s. %s", outcome.stopped_by, where, RESUME_HINT)
        else:
            logger.info("Done: %s", where)
    return EXIT_RESUMABLE if outcome.stopped_by else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
