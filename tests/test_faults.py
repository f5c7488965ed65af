"""A short fault campaign of benchmarks.faults: killed runs resume to bit-identical weights."""

import os
import subprocess
import sys
from operator import attrgetter

import pytest

from benchmarks.fault_injection import KILL_POINTS
from tests.ranks import REPOSITORY


@pytest.mark.parametrize("point", KILL_POINTS)
def test_the_function_of_a_kill_point_exists(point: str) -> None:
    module, name = KILL_POINTS[point]
    assert callable(attrgetter(name)(module))


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_faults_lose_nothing():
    command = [sys.executable, "-m", "benchmarks.faults", "--faults", "8", "--seed", "1"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 faults in" in done.stdout
    assert ", 0 violations" in done.stdout
