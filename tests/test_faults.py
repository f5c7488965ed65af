"""A slice of the campaign of faults in benchmarks/faults.py: what is killed goes on to the same
last bit.
"""

import os
import subprocess
import sys

import pytest

from tests.ranks import REPOSITORY


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_dozen_faults_lose_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--faults", "14", "--seed", "1"],
        cwd=REPOSITORY,
        text=True,
        capture_output=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "14 faults in" in done.stdout
    assert ", 0 losses" in done.stdout
