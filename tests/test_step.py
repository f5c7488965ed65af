"""TrainingStep: nothing waits for the device, and a bad step changes nothing."""

import os
import traceback
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mofore.config import PretrainConfig, compose
from mofore.host_copy import HostCopy
from mofore.parallel.engine import load_deepspeed, start_ranks
from mofore.profiling import random_batch
from mofore.startup import build_training_engine
from mofore.step import TrainingStep
from mofore.types import Batch
from tests.small import TINY

# Operations whose result the host needs: on a GPU it waits for all work before them.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "aten.equal", "unique")


class HostReads(TorchDispatchMode):
    """Counts operations that make the host wait for the device, by the line that asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in WAITING):
            frames = [f for f in traceback.extract_stack() if "site-packages/torch" not in f[0]]
            place = " < ".join(f"{os.path.basename(f[0])}:{f[1]}" for f in frames[-2:-6:-1])
            self.places[f"{function} {place}"] += 1
        return function(*args, **(kwargs or {}))


def small_step(*overrides: str) -> tuple[TrainingStep, list[Batch]]:
    config = compose(
        PretrainConfig,
        [
            *TINY,
            "data.manifest=none",
            "global_batch=4",
            "micro_batch=2",
            "steps=10",
            "optimizer.warmup_steps=0",
            "teacher.momentum=0.9",
            *overrides,
        ],
    )
    engine = build_training_engine(config, None, start_ranks(config.engine))
    torch.manual_seed(1)
    micro_batches = [random_batch(config, 2, engine.device) for _ in range(2)]
    return TrainingStep(config, engine), micro_batches


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_does_not_wait_for_the_device(environment, monkeypatch, stage, precision):
    """The CPU cannot show a wait, but it shows each operation that causes one on a GPU."""
    step, micro_batches = small_step(f"engine.zero_stage={stage}", f"engine.precision={precision}")
    accelerator = load_deepspeed().accelerator.get_accelerator()
    waits: list[str] = []
    monkeypatch.setattr(accelerator, "synchronize", lambda *_: waits.append("synchronize"))
    step(0, micro_batches)
    with HostReads() as reads:
        step(1, micro_batches, (0.0, 1.0))
    assert not reads.places
    assert not waits


def test_the_check_sees_a_read():
    """So that the test above can fail."""
    with HostReads() as reads:
        float(torch.ones(()) + 1)
    assert len(reads.places) == 1


def weights(step: TrainingStep) -> list[torch.Tensor]:
    return [p.detach().clone() for p in step.engine.module.parameters()]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_bad_step_changes_neither_student_nor_teacher(environment, stage):
    step, micro_batches = small_step(f"engine.zero_stage={stage}")
    step(0, micro_batches)
    before = weights(step)
    bad = micro_batches[1]._replace(gaps=micro_batches[1].gaps * torch.nan)
    update = step(1, [micro_batches[0], bad])
    assert not update.losses.total.isfinite()
    assert not update.grad_norm.isfinite()
    assert all(map(torch.equal, before, weights(step)))
    update = step(2, micro_batches)
    assert update.grad_norm.isfinite()
    assert not any(map(torch.equal, before, weights(step)))


def test_a_loss_that_may_not_be_applied_is_skipped(environment):
    step, micro_batches = small_step()
    seen: list[float] = []
    step.may_apply = lambda loss: bool(seen.append(loss))
    before = weights(step)
    update = step(0, micro_batches)
    assert seen == [pytest.approx(float(update.losses.total))]
    assert not update.grad_norm.isfinite()
    assert all(map(torch.equal, before, weights(step)))


def test_flags_and_numbers_come_back(environment):
    step, micro_batches = small_step()
    update = step(0, micro_batches, (1.0, 0.0))
    assert update.flags.tolist() == [1.0, 0.0]
    assert float(update.mean_gap) == pytest.approx(0.5)
    assert HostCopy(torch.stack(update.losses)).read() == [float(loss) for loss in update.losses]


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_step_does_not_wait_for_the_gpu(environment, cuda, stage):
    """torch's own detector of synchronising calls."""
    step, micro_batches = small_step(f"engine.zero_stage={stage}", "engine.compile=never")
    for number in range(3):
        step(number, micro_batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        update = step(3, micro_batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert update.losses.total.isfinite()


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 2])
def test_a_bad_step_on_a_gpu_changes_nothing(environment, cuda, stage):
    """found_inf of the fused optimizer on CUDA."""
    test_a_bad_step_changes_neither_student_nor_teacher(None, stage)
