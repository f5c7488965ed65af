"""engine.compile: the same numbers and names; what does not compile runs eagerly."""

import logging

import pytest
import torch
from timm.models.vision_transformer import Block

from mofore import compilation
from mofore.compilation import compile_blocks, compiled_graphs, should_compile
from mofore.config import PretrainConfig, compose
from mofore.models.objective import build_pretraining
from mofore.parallel.engine_config import Compile, EngineConfig
from mofore.precision import Precision
from mofore.profiling import random_batch
from tests.small import TINY


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def tiny_model(*overrides: str):
    config = compose(PretrainConfig, [*TINY, "data.manifest=none", "global_batch=2", *overrides])
    batch = random_batch(config, 2, torch.device("cpu"))
    return build_pretraining(config.model(), 0), batch


@pytest.fixture
def without_code(monkeypatch):
    """Dynamo and autograd as in a run, without the minutes of generating C++."""
    compile_block = Block.compile
    monkeypatch.setattr(
        Block, "compile", lambda block, **how: compile_block(block, backend="aot_eager", **how)
    )


def loss_and_gradients(model, batch) -> list[torch.Tensor]:
    targets = model(batch)
    loss = model(batch, targets, targets.keys).total
    names, parameters = zip(
        *[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True
    )
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def test_compiled_blocks_compute_the_same(without_code):
    model, batch = tiny_model()
    names, expected = list(model.state_dict()), loss_and_gradients(model, batch)
    assert compile_blocks(model, batch, Precision.fp32)
    assert list(model.state_dict()) == names
    assert all(p.grad is None for p in model.parameters())
    graphs = compiled_graphs()
    assert graphs > 0
    for ours, reference in zip(loss_and_gradients(model, batch), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5)
    assert compiled_graphs() == graphs, "the second pass compiled again"


def test_blocks_of_one_shape_share_their_code(without_code):
    counts = []
    for depth in (2, 4):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        model, batch = tiny_model(f"backbone.depth={depth}")
        assert compile_blocks(model, batch, Precision.fp32)
        counts.append(compiled_graphs())
    assert counts[0] == counts[1]


@pytest.mark.slow
def test_generated_code_computes_the_same():
    """Inductor's C++, with g++."""
    model, batch = tiny_model("backbone.depth=1")
    expected = loss_and_gradients(model, batch)
    assert compile_blocks(model, batch, Precision.fp32)
    for ours, reference in zip(loss_and_gradients(model, batch), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-4)


def test_what_does_not_compile_runs_eagerly(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no such kernel\nmore lines")

    compile_block = Block.compile
    monkeypatch.setattr(
        Block, "compile", lambda block, **how: compile_block(block, backend=broken, **how)
    )
    monkeypatch.setattr(compilation.logger, "propagate", True)
    monkeypatch.setattr(logging.getLogger("mofore"), "propagate", True)
    model, batch = tiny_model()
    expected = loss_and_gradients(model, batch)
    with caplog.at_level(logging.WARNING):
        assert not compile_blocks(model, batch, Precision.fp32)
    assert "engine.compile: the blocks do not compile" in caplog.text
    assert "no such kernel" in caplog.text
    assert "more lines" not in caplog.text
    for ours, reference in zip(loss_and_gradients(model, batch), expected, strict=True):
        assert torch.equal(ours, reference)


@pytest.mark.parametrize(
    ("compile", "stage", "device", "expected"),
    [
        (Compile.auto, 0, "cpu", False),
        (Compile.auto, 2, "cuda", True),
        (Compile.auto, 3, "cuda", False),
        (Compile.always, 1, "cpu", True),
        (Compile.never, 0, "cuda", False),
    ],
)
def test_when_blocks_are_compiled(compile, stage, device, expected):
    config = EngineConfig(compile=compile, zero_stage=stage)
    assert should_compile(config, torch.device(device)) is expected


@pytest.mark.gpu
def test_compiled_blocks_compute_the_same_on_a_gpu(cuda):
    model, batch = tiny_model("data.size=64")
    model, batch = model.to(cuda), type(batch)(*(part.to(cuda) for part in batch))
    expected = loss_and_gradients(model, batch)
    assert compile_blocks(model, batch, Precision.fp32)
    for ours, reference in zip(loss_and_gradients(model, batch), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-2, atol=1e-3)
