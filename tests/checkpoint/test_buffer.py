"""buffer: memory of exactly the state's size, page-locked for a GPU and released again."""

import gc
from types import SimpleNamespace

import pytest
import torch

from benchmarks.processes import measure_memory
from mofore.checkpoint.buffer import HostBuffer
from mofore.checkpoint.format import CheckpointConfig
from mofore.checkpoint.reader import Checkpoint
from mofore.checkpoint.saver import Saver
from mofore.types import Shard


class Cudart:
    """Stands in for CUDA's runtime: what is registered, by address."""

    def __init__(self, status: int = 0) -> None:
        self.status, self.registered = status, {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert flags == 0
        assert address not in self.registered
        if self.status == 0:
            self.registered[address] = size
        return self.status

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


@pytest.fixture
def cudart(monkeypatch) -> Cudart:
    cudart = Cudart()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    return cudart


def test_exactly_its_size_is_registered_until_it_is_freed(cudart):
    """5000 numbers: not the 8192 of the next power of two."""
    buffer = HostBuffer(5000, pin=True)
    assert cudart.registered == {buffer.values.data_ptr(): 20_000}
    del buffer
    gc.collect()
    assert cudart.registered == {}


def test_the_buffer_of_a_saver_is_replaced_when_the_state_changes_its_size(
    cudart, tmp_path, monkeypatch
):
    """The old one is released first: the two together might not fit."""
    made, init = [], HostBuffer.__init__

    def watched(buffer, size, pin):
        made.append((size, dict(cudart.registered)))
        init(buffer, size, True)

    monkeypatch.setattr(HostBuffer, "__init__", watched)
    saver = Saver(tmp_path, CheckpointConfig(), {"weights/a": [9]})
    for step, size in enumerate((9, 9, 7)):
        saver.save(step, iter([Shard("weights/a", 0, torch.ones(size), True)]), {})
    saver.close()
    assert made == [(9, {}), (7, {})]
    assert list(cudart.registered.values()) == [28]


def test_memory_that_cannot_be_locked_is_used_as_it_is(cudart, caplog):
    cudart.status = 2
    buffer = HostBuffer(5000, pin=True)
    buffer.copy([Shard("weights/a", 0, torch.arange(5000.0), True)])
    assert torch.equal(buffer.values, torch.arange(5000.0))
    assert caplog.text.count("CUDA cannot page-lock 0.00 GB for checkpoints (error 2") == 1
    del buffer
    assert cudart.registered == {}


def test_a_cpu_needs_no_cuda(monkeypatch):
    monkeypatch.setattr(torch, "cuda", SimpleNamespace())
    buffer = HostBuffer(4, pin=False)
    parts = [
        Shard("weights/a", 0, torch.ones(3), True),
        Shard("weights/b", 0, torch.zeros(1), True),
    ]
    buffer.copy(parts)
    assert buffer.values.tolist() == [1, 1, 1, 0]


@pytest.mark.gpu
def test_page_locked_memory_of_a_gpu_state_is_no_larger_than_the_state(cuda, tmp_path):
    """A state just above a power of two, for which torch's allocator would take twice as much."""
    size = 2**24 + 1000  # 64 MiB and a little
    state = torch.arange(size, dtype=torch.float32, device=cuda)
    HostBuffer(1000, pin=True).copy([Shard("weights/a", 0, state[:1000], True)])  # what CUDA needs
    with measure_memory() as memory:
        buffer = HostBuffer(size, pin=True)
    assert buffer.values.is_pinned()
    assert 4 * size <= memory.peak < 4 * size + 2**20
    del buffer
    saver = Saver(tmp_path, CheckpointConfig(), {"weights/a": [size]})
    saver.save(1, iter([Shard("weights/a", 0, state, True)]), {})
    state += 1  # the next step
    saver.close()
    assert saver.buffer.values.is_pinned()
    saved = Checkpoint(tmp_path / "checkpoints" / "step-1").tensor("weights/a")
    assert torch.equal(saved, torch.arange(size, dtype=torch.float32))


@pytest.mark.gpu
def test_the_gpu_works_after_memory_could_not_be_locked(cuda, caplog):
    """CUDA keeps the error, and the next kernel would raise it."""
    buffer = HostBuffer(2**20, pin=True)
    assert buffer.values.is_pinned()
    buffer._pin()  # refused: it is locked already
    assert "CUDA cannot page-lock" in caplog.text
    values = torch.ones(2**20, device=cuda) + 1
    buffer.copy([Shard("weights/a", 0, values, True)])
    assert buffer.values.unique().tolist() == [2.0]
