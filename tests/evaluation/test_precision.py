"""Extraction on every device and in every precision gives the features of fp32 on a CPU, within
stated tolerances; results.json says which device and precision it was.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from mofore.config import PretrainConfig
from mofore.data.dataset import DataConfig
from mofore.data.manifest import read_annotations, read_manifest, write_manifest
from mofore.errors import UserError
from mofore.evaluation.config import EvaluateConfig
from mofore.evaluation.encoders import embed_all
from mofore.evaluation.evaluate import evaluate
from mofore.evaluation.extraction import extract_features
from mofore.evaluation.features import Features, l2_normalise
from mofore.evaluation.forecasting import forecast_errors
from mofore.evaluation.recognition import knn
from mofore.evaluation.splits import choose_split, video_names
from mofore.models.backbone import BackboneConfig
from mofore.models.forecaster import ForecasterConfig
from mofore.models.objective import Pretraining, build_pretraining
from mofore.precision import Precision
from mofore.types import Batch
from tests.evaluation.small_run import make_config, make_run

CPU = torch.device("cpu")
Extract = Callable[[torch.device, Precision], dict[str, Features]]
# Against fp32 on a CPU: the smallest cosine of two embeddings of a clip, and the largest relative
# difference of a forecast error.
TOLERANCE = {
    Precision.fp32: (0.999999, 1e-4),
    Precision.tf32: (0.99999, 5e-3),
    Precision.bf16: (0.9999, 3e-2),
}
# Of the 16 videos of test, so many more or fewer may be correct: two classes can be almost equally
# near.
KNN_DIFFERENCE = 1


@pytest.fixture(autouse=True)
def matmul_precision() -> Iterator[None]:
    """An evaluation sets it for the process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory, rows) -> PretrainConfig:
    """Four blocks, so that rounding accumulates."""
    manifest = tmp_path_factory.mktemp("precision") / "manifest.parquet"
    write_manifest(manifest, rows)
    return PretrainConfig(
        data=DataConfig(manifest=str(manifest), frames=4, fps=12.0, size=32, targets=2),
        backbone=BackboneConfig(embed_dim=64, depth=4, num_heads=4, patch_size=8),
        forecaster=ForecasterConfig(dim=32, depth=2, heads=2),
    )


@pytest.fixture(scope="module")
def model(config) -> Pretraining:
    return build_pretraining(config.model(), 3).eval()


@pytest.fixture(scope="module")
def extract(config, model) -> Extract:
    manifest = read_manifest(config.data.manifest)
    split = choose_split(video_names(manifest), read_annotations(manifest.path))
    cfg = EvaluateConfig(run="none", workers=0)

    def run(device: torch.device, precision: Precision) -> dict[str, Features]:
        try:
            return extract_features(cfg, config, model, manifest, split, device, precision)
        finally:
            model.to(CPU)

    return run


@pytest.fixture(scope="module")
def expected(extract) -> dict[str, Features]:
    return extract(CPU, Precision.fp32)


def assert_agrees(
    found: dict[str, Features], expected: dict[str, Features], precision: Precision
) -> None:
    min_cosine, max_error = TOLERANCE[precision]
    for name in ("trained", "untrained"):
        one, other = found[name], expected[name]
        assert one.view_embeddings.dtype == np.float32
        pairs = zip(*(l2_normalise(each.view_embeddings) for each in (one, other)), strict=True)
        cosines = np.array([(a * b).sum(-1) for a, b in pairs])
        print(name, precision.value, "smallest cosine", cosines.min())
        assert cosines.min() > min_cosine
        for field in ("forecast", "persistence", "mean_latent"):
            a, b = (getattr(each.errors, field) for each in (one, other))
            print(name, precision.value, field, "error", np.nanmax(np.abs(a / b - 1)))
            np.testing.assert_allclose(a, b, rtol=max_error)
        assert abs(knn_correct(one) - knn_correct(other)) <= KNN_DIFFERENCE
    for name in ("pixels", "frame differences"):
        np.testing.assert_allclose(
            found[name].view_embeddings, expected[name].view_embeddings, atol=1e-6
        )


def knn_correct(features: Features) -> float:
    """Videos of test that kNN classifies correctly."""
    accuracy = knn(features, EvaluateConfig(run="none", bootstrap_resamples=2))[0]
    assert accuracy.value is not None
    return accuracy.value * accuracy.n


def test_bf16_on_a_cpu_agrees_with_fp32(extract, expected):
    found = extract(CPU, Precision.bf16)
    assert_agrees(found, expected, Precision.bf16)
    for name in ("trained", "untrained"):  # it was bf16
        distance = np.abs(found[name].view_embeddings - expected[name].view_embeddings).max()
        assert distance > 1e-4
    for name in ("pixels", "frame differences"):  # these are fp32
        one, other = found[name].view_embeddings, expected[name].view_embeddings
        np.testing.assert_array_equal(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_gpu_agrees_with_fp32_on_a_cpu(extract, expected, cuda, precision):
    assert_agrees(extract(cuda, precision), expected, precision)


@pytest.mark.gpu
def test_a_gpu_waits_for_nothing_but_the_copies_of_the_features(config, model, cuda):
    """`error` raises where the host waits for the device; events, which `on_host` uses, may."""
    clip = (3, 4, 32, 32)
    clips = torch.randint(0, 256, (4, 3, *clip), dtype=torch.uint8).pin_memory()
    none = torch.zeros(4, 0, dtype=torch.int64).pin_memory()
    gaps, rows = torch.rand(4, 2).pin_memory(), torch.arange(4).pin_memory()
    context, targets = (part.clone().pin_memory() for part in (clips[:, 0], clips[:, 1:]))
    batch = Batch(context, targets, gaps, rows, none, none)
    on_gpu = model.to(cuda)
    torch.cuda.set_sync_debug_mode("error")
    try:
        encoders = {"trained": on_gpu.teacher.embed}
        embed_all(encoders, [(clips, rows)] * 3, cuda, Precision.bf16)
        forecast_errors({"trained": on_gpu}, [batch] * 3, 4, 2, cuda, Precision.bf16)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.to(CPU)


def test_results_name_device_and_precision_and_the_cache_keeps_precisions_apart(tmp_path, rows):
    run = make_run(tmp_path, rows)
    cache = run / "evaluation" / "features.npz"

    def results(precision: Precision) -> dict:
        config = replace(make_config(run), precision=precision)
        return json.loads(evaluate(config).read_text())

    first = results(Precision.fp32)
    assert (first["device"], first["precision"]) == (device_name(), "fp32")
    made = cache.stat().st_mtime_ns
    assert results(Precision.fp32) == first
    assert cache.stat().st_mtime_ns == made
    other = results(Precision.bf16)
    assert cache.stat().st_mtime_ns != made
    assert (other["device"], other["precision"]) == (device_name(), "bf16")
    assert results(Precision.bf16) == other  # from the cache: the device that it was computed on


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def test_auto_is_fp32_on_a_cpu(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = json.loads(evaluate(make_config(make_run(tmp_path, rows))).read_text())
    assert (found["device"], found["precision"]) == ("cpu", "fp32")


def test_bf16_on_a_gpu_without_it_names_the_key(tmp_path, rows, monkeypatch):
    for name, value in (
        ("is_available", True),
        ("is_bf16_supported", False),
        ("get_device_name", "Tesla V100"),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    config = replace(make_config(make_run(tmp_path, rows)), precision=Precision.bf16)
    with pytest.raises(UserError, match=r"^precision=bf16: Tesla V100 .* Give precision=auto"):
        evaluate(config)
