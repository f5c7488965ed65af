"""engine.deepspeed.*: merged into DeepSpeed's configuration, or refused by name."""

import pytest

from mofore.config import PretrainConfig, compose
from mofore.errors import UserError
from mofore.launch.overrides import overrides_of
from mofore.parallel.deepspeed_options import REFUSED, merge_options
from mofore.parallel.engine import deepspeed_settings
from mofore.precision import Precision

MANIFEST = "data.manifest=none"
BUCKET = "engine.deepspeed.zero_optimization.reduce_bucket_size=1000"


def test_an_option_replaces_ours_and_leaves_the_rest():
    config = compose(PretrainConfig, [MANIFEST, "engine.zero_stage=1", BUCKET]).engine
    ours = deepspeed_settings(config, Precision.fp32, own_gradients=True)
    merged = merge_options(ours, config.deepspeed)
    assert merged["zero_optimization"] == ours["zero_optimization"] | {"reduce_bucket_size": 1000}
    assert merged["torch_autocast"] == ours["torch_autocast"]
    assert ours["zero_optimization"]["reduce_bucket_size"] != 1000


def test_options_survive_the_way_into_a_job():
    config = compose(PretrainConfig, [MANIFEST, BUCKET, "engine.deepspeed.comms_logger.x=[1,a]"])
    assert compose(PretrainConfig, overrides_of(config)) == config


def set_option(name: str) -> list[str]:
    parent = "" if "." not in name else "zero_optimization."
    return [MANIFEST, f"engine.deepspeed.{parent}{name.rpartition('.')[2]}=1"]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_break_a_run_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"engine.deepspeed.{name} is refused: "):
        compose(PretrainConfig, set_option(name))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.deepspeed=3"], "engine.deepspeed"),
        (["engine.deepspeed.zero_optimization=1"], "give its keys"),
        (
            ["engine.deepspeed.zero_optimization.offload_optimizer.device=cpu"],
            "needs engine.zero_stage=1, 2 or 3",
        ),
        (
            [
                "engine.zero_stage=2",
                "engine.deepspeed.zero_optimization.offload_optimizer.device=nvme",
            ],
            "MoFore supports cpu",
        ),
        (["engine.compile=always", "engine.zero_stage=3"], "engine.compile=always"),
        (["engine.peak_tflops=0"], "engine.peak_tflops=0"),
    ],
)
def test_options_that_cannot_work_raise(overrides, message):
    with pytest.raises(UserError, match=message):
        compose(PretrainConfig, [MANIFEST, *overrides])
