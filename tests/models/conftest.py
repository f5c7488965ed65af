"""Shared: the devices that a test of the models runs on."""

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU, then the first GPU if there is one."""
    return request.getfixturevalue("cuda") if request.param == "cuda" else torch.device("cpu")
