"""startup: the batches of a run, on the device, equal those of its dataset."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mofore.config import PretrainConfig, compose
from mofore.data.dataset import PretrainClips, collate
from mofore.data.manifest import read_manifest
from mofore.data.order import global_batch_indices
from mofore.data.views import apply_jitter
from mofore.startup import empty_batch, load_batches
from mofore.types import Batch
from tests.small import SMALL

CPU = torch.device("cpu")


def config_of(manifest: Path, *overrides: str) -> PretrainConfig:
    fixed = [*SMALL, f"data.manifest={manifest}", "data.augment.static_noise=0.5"]
    return compose(PretrainConfig, [*fixed, *overrides])


def first_batches(config: PretrainConfig, device: torch.device, start: int = 0) -> list[Batch]:
    """The micro-batches of one step."""
    manifest = read_manifest(config.data.manifest)
    batches = load_batches(config, manifest, np.arange(len(manifest)), start, device)
    return list(itertools.islice(batches, config.split_batch(1)[1]))


@pytest.mark.parametrize("ratios", [("1", "1"), ("0.5", "0.25")])
def test_batches_are_those_of_the_dataset_with_jitter(manifest, ratios):
    student, teacher = ratios
    config = config_of(
        manifest, f"data.token_keep_ratio={student}", f"teacher.token_keep_ratio={teacher}"
    )
    videos = read_manifest(config.data.manifest)
    rows = np.arange(len(videos))
    clips = PretrainClips(
        videos, config.data, rows, config.seed, config.tokens, config.teacher.token_keep_ratio
    )
    indices = global_batch_indices(3, len(rows), config.global_batch, config.seed)
    expected = apply_jitter(collate([clips[index] for index in indices]))
    found = first_batches(config, CPU, start=3)
    micro_batch, count = config.split_batch(1)
    assert len(found) == count
    for number, batch in enumerate(found):
        own = slice(number * micro_batch, (number + 1) * micro_batch)
        for name, tensor, whole in zip(Batch._fields, batch, expected, strict=True):
            assert torch.equal(tensor, whole[own]), name
        empty = empty_batch(config, micro_batch, CPU)
        assert [(t.shape, t.dtype) for t in empty] == [(t.shape, t.dtype) for t in batch]


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_arrive_on_a_gpu_from_pinned_memory_on_a_stream_of_its_own(cuda, manifest, workers):
    config = config_of(manifest, f"workers={workers}", "data.token_keep_ratio=0.5")
    on_cpu = first_batches(config, CPU)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        on_gpu = first_batches(config, cuda)
        torch.cuda.synchronize()
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert all(tensor.device == cuda for tensor in one)
        for clips, expected in zip(one[:2], other[:2], strict=True):
            assert (clips.cpu().int() - expected.int()).abs().max() <= 1
            assert (clips.cpu() != expected).float().mean() < 1e-3
        assert all(torch.equal(a.cpu(), b) for a, b in zip(one[2:], other[2:], strict=True))
    events = trace.profiler.kineto_results.events()
    copies = [event for event in events if "Memcpy HtoD" in event.name()]
    assert copies
    assert {event.name() for event in copies} == {"Memcpy HtoD (Pinned -> Device)"}
    kernels = {e.device_resource_id() for e in events if "elementwise_kernel" in e.name()}
    assert kernels
    assert not kernels & {event.device_resource_id() for event in copies}
