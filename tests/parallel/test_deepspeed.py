"""The private parts of DeepSpeed that the engine uses; a failure names the change."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from mofore.parallel.engine import Engine, build_engine, load_deepspeed, start_ranks
from mofore.parallel.engine_config import EngineConfig
from mofore.precision import Precision


@pytest.fixture(params=[1, 2, 3])
def engine(request, environment, zero3) -> Engine:
    """An engine of one rank after one update, at stages 1, 2 and 3."""
    start_ranks(EngineConfig(timeout=60))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    groups = [{"params": list(layer.parameters())} for layer in model]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    engine = build_engine(model, optimizer, EngineConfig(zero_stage=request.param), 1, 1, 1.0)
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
    return engine


def test_parameters_have_the_attributes_that_we_read(engine):
    """Stages 1 and 2 map a parameter to its slice; stage 3 replaces it by a padded shard."""
    for name, parameter in engine.module.named_parameters():
        if engine.zero_optimization_stage() == 3:
            for attribute in ("ds_tensor", "ds_numel", "ds_shape"):
                assert hasattr(parameter, attribute), f"DeepSpeed renamed {attribute} ({name})"
            assert parameter.ds_tensor.numel() >= parameter.ds_numel, (
                "one rank's shard is the whole"
            )
            continue
        mapping = parameter._hp_mapping
        assert mapping is not None, "DeepSpeed no longer maps parameters with _hp_mapping"
        assert mapping.lp_fragment_address.start == 0, "the slice's start moved elsewhere"
        assert callable(mapping.update_hp), "the fp32 copy is no longer updated by update_hp"


@pytest.mark.parametrize("engine", [1, 2], indirect=True)
def test_moments_must_be_linked_by_us(engine):
    """If DeepSpeed links them for every parameter group, `_link_moments` can go."""
    optimizer = engine.optimizer
    assert hasattr(optimizer, "_hp_optimizer_states_linked"), "DeepSpeed renamed the flag"
    optimizer._hp_optimizer_states_linked = False
    optimizer._lazy_init_hp_params_optimizer_state()
    for parameter in engine.module.parameters():
        fragments = parameter._hp_mapping.optim_fragment
        assert {"exp_avg", "exp_avg_sq"} <= fragments.keys(), "moments are no longer linked here"


def test_the_update_count_is_in_the_inner_optimizer(engine):
    """`_set_update_count` writes it there, for the bias correction of the moments."""
    states = engine.optimizer.optimizer.state.values()
    assert states, "DeepSpeed no longer keeps the optimizer as .optimizer"
    assert {float(state["step"]) for state in states} == {1.0}


def test_no_inference_operator_is_built():
    """DeepSpeed would compile for a minute, and wait forever for a dead rank."""
    load_deepspeed()
    from deepspeed.comm.torch import TorchBackend

    assert TorchBackend.__init__.__globals__["build_shm_op"]() is None, "build_shm_op moved"


def test_the_accelerator_is_chosen_without_a_message():
    """DS_ACCELERATOR must be read when DeepSpeed is imported, or every process logs its search."""
    code = "from mofore.parallel.engine import load_deepspeed; load_deepspeed()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "accelerator" not in done.stdout + done.stderr


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_reduced_in_fp32_under_bf16(environment, zero3, stage):
    """DeepSpeed's own default reduces those of Linear layers in bf16."""
    config = EngineConfig(zero_stage=stage, precision=Precision.bf16)
    start_ranks(config)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    engine = build_engine(model, optimizer, config, 1, 1, 1.0)
    assert set(engine.optimizer.ipg_buckets) == {torch.float32}, "DeepSpeed's buckets changed"


@pytest.mark.parametrize("engine", [1, 2], indirect=True)
def test_gradients_are_found_before_the_update(engine):
    """`Gradients` reads and scales them there, at stages 1 and 2."""
    engine.backward(engine(torch.ones(1, 4)).sum())
    groups = engine.optimizer.averaged_gradients
    found = sum(gradient.numel() for group in groups.values() for gradient in group)
    assert found >= sum(p.numel() for p in engine.module.parameters())
    assert engine.optimizer.compute_grad_norm is False, "DeepSpeed computes the norm once more"
    engine.step()
