"""Blocks compile in place as whole graphs, and a step does not wait for the device."""

import copy
from collections.abc import Iterator

import pytest
import torch
from timm.models.vision_transformer import Block
from torch.utils._python_dispatch import TorchDispatchMode

from mofore.models.ema import update_teacher
from mofore.models.objective import Pretraining, build_pretraining
from mofore.types import Batch
from tests.models.small_model import PAPER, model_config, random_batch, random_tokens
from tests.small import SMALL

DINO = (*SMALL, "backbone.name=vit_small_patch14_reg4_dinov2", "backbone.drop_path=0.2")
CHECKPOINTED = (*SMALL, "backbone.grad_checkpoint_every=1", "backbone.patch_norm=true")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def build(overrides: tuple[str, ...], sparse: bool) -> tuple[Pretraining, Batch]:
    model, batch = build_pretraining(model_config(overrides), 0), random_batch()
    if sparse:
        visible, teacher_visible = random_tokens(4, 16, seed=1), random_tokens(4, 8, seed=2)
        batch = batch._replace(visible=visible, teacher_visible=teacher_visible)
    return model, batch


def step(model: Pretraining, batch: Batch, bf16: bool = False) -> torch.Tensor:
    torch.manual_seed(0)  # stochastic depth
    with torch.autocast(batch.gaps.device.type, torch.bfloat16, enabled=bf16):
        targets = model(batch)
        loss = model(batch, targets, targets.keys).total
    loss.backward()
    return loss


# torch's compiler looks at the gradient of every input.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize(
    ("overrides", "bf16", "sparse"),
    [(SMALL, False, False), (SMALL, False, True), (DINO, True, True), (CHECKPOINTED, True, False)],
)
def test_blocks_compile_in_place_as_whole_graphs(overrides, bf16, sparse):
    """One block each of student, teacher and forecaster; fullgraph forbids graph breaks."""
    plain, batch = build(overrides, sparse)
    model = copy.deepcopy(plain)
    names = list(model.state_dict())
    for part in (model.student, model.teacher, model.forecaster):
        block = part.blocks[0]
        assert isinstance(block, Block)
        block.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(step(model, batch, bf16), step(plain, batch, bf16))
    for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) is (other.grad is None), name
        if p.grad is not None:
            rtol, atol = (2e-2, 2e-3) if bf16 else (1e-4, 1e-5)
            torch.testing.assert_close(p.grad, other.grad, rtol=rtol, atol=atol)


class NoHostSync(TorchDispatchMode):
    """Fails at an operation that would make the host wait for the device."""

    WAITS = (
        torch.ops.aten._local_scalar_dense,
        torch.ops.aten.nonzero,
        torch.ops.aten.equal,
        torch.ops.aten.masked_select,
        torch.ops.aten._unique2,
        torch.ops.aten.is_nonzero,
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = func.overloadpacket in self.WAITS
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put):
            waits |= any(i is not None and i.dtype == torch.bool for i in args[1])  # counts them
        assert not waits, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [float, bool, torch.nonzero, lambda t: t[t > 0]])
def test_the_check_finds_what_waits(read):
    with NoHostSync(), pytest.raises(AssertionError, match="waits for the device"):
        read(torch.ones(1))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [SMALL, DINO, CHECKPOINTED, (*SMALL, "loss.query=forecast", "forecaster.kind=mlp"), PAPER],
)
def test_a_step_does_not_wait_for_the_device(overrides, bf16, sparse):
    """Teacher, student, losses, backward and the teacher's update."""
    if overrides is PAPER and sparse:
        pytest.skip("per-frame attention takes all tokens")
    model, batch = build(overrides, sparse)
    weight = torch.tensor(0.1)
    with NoHostSync():
        step(model, batch, bf16)
        update_teacher(model.teacher, model.student, weight)


@pytest.mark.gpu
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_does_not_wait_for_the_gpu(cuda, bf16, sparse):
    """By CUDA's own check, which sees waits inside an operation too."""
    model, batch = build(CHECKPOINTED, sparse)
    model, batch = model.to(cuda), Batch(*(tensor.to(cuda) for tensor in batch))
    weight = torch.tensor(0.1, device=cuda)
    step(model, batch, bf16)  # the first step initialises libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, batch, bf16)
        update_teacher(model.teacher, model.student, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")
