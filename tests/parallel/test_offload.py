"""An optimizer on the host trains the same weights, and its checkpoints resume without it."""

import pytest

from tests.parallel.test_elastic import train_all
from tests.small import distance, metrics, state
from tests.test_training import assert_same_run, resume_from_half

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

OFFLOAD = "engine.deepspeed.zero_optimization.offload_optimizer.device=cpu"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_optimizer_on_the_host_changes_nothing(tmp_path, manifest, stage):
    """On CPUs both are on the host, but DeepSpeed takes its other path."""
    data, run = f"data.manifest={manifest}", {"run": (2, stage)}
    train_all(tmp_path / "plain", run, data)
    train_all(tmp_path / "offloaded", run, data, OFFLOAD)
    plain, offloaded = tmp_path / "plain/run", tmp_path / "offloaded/run"
    assert_same_run(offloaded, plain)
    resumed = {"resumed": (2, stage)}
    resume_from_half(offloaded, tmp_path / "offloaded/resumed")
    train_all(tmp_path / "offloaded", resumed, data)  # without offload
    assert_same_run(tmp_path / "offloaded/resumed", plain)
    trained = state(offloaded, 4)
    assert distance(trained, state(plain, 4), [n for n in trained if "exp_avg" in n]) < 1e-2
    assert len(metrics(offloaded)) == 4
