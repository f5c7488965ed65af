"""Imports have no side effects, and the contracts in pyproject.toml hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
HEAVY = ("deepspeed", "hydra", "submitit", "torch")
STATE = """
import json, os, sys, warnings
import {first}
before = dict(os.environ), list(warnings.filters)
{code}
print(json.dumps({{
    "environment": dict(os.environ) != before[0],
    "filters": [str(each) for each in warnings.filters if each not in before[1]],
    "modules": [name for name in {heavy} if name in sys.modules],
}}), file=sys.stderr)
"""


def state_after(code: str, first: str = "sys") -> dict:
    """What a fresh interpreter has changed after this code; `first` is imported before it looks."""
    script = STATE.format(code=code, first=first, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    return json.loads(done.stderr.splitlines()[-1])


def test_contracts_hold():
    """Layers, no cycles, deepspeed only in the engine, hydra only in config: see
    [tool.importlinter].
    """
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stdout


def test_importing_mofore_loads_nothing_heavy():
    assert state_after("import mofore") == {"environment": False, "filters": [], "modules": []}


# What these import may change their own filters; MoFore may not.
OTHERS = "torch, timm, hydra, omegaconf, torchvision, sklearn, matplotlib, pyarrow, av, decord"


@pytest.mark.parametrize(
    "code",
    [
        "import mofore.train, mofore.trainer, mofore.parallel.engine",
        "import mofore.evaluation.evaluate, mofore.evaluation.report",
        "import mofore.data.prepare, mofore.inference",
    ],
)
def test_importing_a_module_changes_nothing(code):
    after = state_after(code, first=OTHERS + ", torch.utils.tensorboard")
    assert "deepspeed" not in after["modules"]
    assert not after["environment"]
    assert not after["filters"]


@pytest.mark.parametrize("command", ["pretrain", "evaluate", "submit"])
def test_help_loads_no_deepspeed(command):
    call = f"main(['{command}', '--help'])"
    code = f"from mofore.launch.cli import main\ntry: {call}\nexcept SystemExit: pass"
    assert "deepspeed" not in state_after(code)["modules"]
