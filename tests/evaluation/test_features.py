import numpy as np
import pytest
import torch

from mofore.errors import UserError
from mofore.evaluation.encoders import embed_all, frame_differences, pixels
from mofore.evaluation.features import (
    Features,
    ForecastErrors,
    load_cached_features,
    load_features,
    save_features,
)

RANDOM = torch.Generator().manual_seed(0)


def clips(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=RANDOM)


def test_pixels_are_average_pooled():
    clip = clips(2, 3, 4, 16, 24)
    blocks = clip.double().unflatten(3, (8, 2)).unflatten(5, (8, 3)).mean(dim=(4, 6)) / 255
    torch.testing.assert_close(pixels(clip).double(), blocks.flatten(1), atol=1e-6, rtol=0)


def test_a_static_clip_has_no_frame_differences():
    static = clips(2, 3, 1, 16, 16).expand(-1, -1, 4, -1, -1)
    assert frame_differences(static).shape == (2, 3 * 3 * 64)
    assert not frame_differences(static).any()


def test_frame_differences_do_not_depend_on_the_direction_of_time():
    clip = clips(1, 3, 4, 16, 16)
    forward = frame_differences(clip).view(3, 3, 64)
    backward = frame_differences(clip.flip(2)).view(3, 3, 64)
    torch.testing.assert_close(forward.flip(1), backward)


def test_views_are_embedded_separately_and_rows_are_sorted():
    given = clips(3, 4, 3, 2, 16, 16)
    batches = [(given[:2], torch.tensor([9, 2])), (given[2:], torch.tensor([5]))]
    rows, found = embed_all({"pixels": pixels}, batches, torch.device("cpu"))
    assert rows.tolist() == [2, 5, 9]
    assert found["pixels"].shape == (3, 4, 3 * 2 * 64)
    np.testing.assert_allclose(found["pixels"][1, 3], pixels(given[2:, 3])[0], rtol=1e-6)


def test_embeddings_that_are_not_finite_are_an_error():
    batches = [(clips(1, 2, 3, 2, 16, 16), torch.tensor([0]))]
    with pytest.raises(UserError, match="trained.*not finite"):
        embed_all({"trained": lambda clip: pixels(clip) / 0}, batches, torch.device("cpu"))


@pytest.fixture
def features() -> dict[str, Features]:
    rng = np.random.default_rng(0)
    errors = ForecastErrors(*(rng.normal(size=(3, 2)).astype(np.float32) for _ in range(3)))
    return {
        name: Features(
            rng.normal(size=(3, 2, 4)).astype(np.float32),
            labels=np.array(["a", "", "b"]),
            groups=np.array(["g", "g", "h"]),
            splits=np.array(["train", "test", "test"]),
            names=np.array(["0.mp4", "2.mp4", "5.mp4"]),
            errors=each,
        )
        for name, each in {"trained": errors, "frame differences": None}.items()
    }


def assert_equal(found: Features, expected: Features) -> None:
    for name in ("view_embeddings", "labels", "groups", "splits", "names"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert (found.errors is None) == (expected.errors is None)
    if found.errors is not None and expected.errors is not None:
        for name in ("forecast", "persistence", "mean_latent"):
            np.testing.assert_array_equal(
                getattr(found.errors, name), getattr(expected.errors, name)
            )


def test_the_embedding_of_a_video_is_the_mean_of_its_views(features):
    trained = features["trained"]
    np.testing.assert_array_equal(trained.embeddings, trained.view_embeddings.mean(axis=1))


def test_the_cache_returns_what_was_saved(tmp_path, features):
    path = tmp_path / "evaluation" / "features.npz"
    save_features(path, "key", features, "a device")
    cached = load_cached_features(path, "key")
    assert cached is not None
    found, device = cached
    assert device == "a device"
    assert found is not None
    assert list(found) == list(features)
    for name in features:
        assert_equal(found[name], features[name])
    assert [other.name for other in path.parent.iterdir()] == ["features.npz"]


def test_features_are_loaded_by_encoder(tmp_path, features):
    path = tmp_path / "features.npz"
    assert load_features(path, ["trained"]) is None
    save_features(path, "key", features, "a device")
    found = load_features(path, ["trained", "untrained"])
    assert found is not None
    assert list(found) == ["trained"]
    assert_equal(found["trained"], features["trained"])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"features\.npz is damaged.*force=true"):
        load_features(path, ["trained"])


def test_a_cache_with_another_key_or_damage_is_not_used(tmp_path, features):
    path = tmp_path / "features.npz"
    assert load_cached_features(path, "key") is None
    save_features(path, "key", features, "a device")
    assert load_cached_features(path, "other") is None
    path.write_bytes(path.read_bytes()[:-200])
    assert load_cached_features(path, "key") is None
    path.write_bytes(b"")
    assert load_cached_features(path, "key") is None
