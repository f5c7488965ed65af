import numpy as np
import pytest
import torch

from mofore.errors import UserError
from mofore.evaluation.encoders import embed_all, frame_differences, pixels
from mofore.evaluation.features import Extracted, ForecastErrors, load, save

RANDOM = torch.Generator().manual_seed(0)


def clips(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=RANDOM)


def test_pixels_are_means_of_areas():
    clip = clips(2, 3, 4, 16, 24)
    blocks = clip.double().unflatten(3, (8, 2)).unflatten(5, (8, 3)).mean(dim=(4, 6)) / 255
    torch.testing.assert_close(pixels(clip).double(), blocks.flatten(1), atol=1e-6, rtol=0)


def test_a_still_clip_has_no_frame_differences():
    still = clips(2, 3, 1, 16, 16).expand(-1, -1, 4, -1, -1)
    assert frame_differences(still).shape == (2, 3 * 3 * 64)
    assert not frame_differences(still).any()


def test_frame_differences_are_blind_to_direction_in_time():
    clip = clips(1, 3, 4, 16, 16)
    forward = frame_differences(clip).view(3, 3, 64)
    backward = frame_differences(clip.flip(2)).view(3, 3, 64)
    torch.testing.assert_close(forward.flip(1), backward)


def test_views_are_embedded_alone_and_rows_put_in_order():
    given = clips(3, 4, 3, 2, 16, 16)
    batches = [(given[:2], torch.tensor([9, 2])), (given[2:], torch.tensor([5]))]
    rows, found = embed_all({"pixels": pixels}, batches, torch.device("cpu"))
    assert rows.tolist() == [2, 5, 9]
    assert found["pixels"].shape == (3, 4, 3 * 2 * 64)
    np.testing.assert_allclose(found["pixels"][1, 3], pixels(given[2:, 3])[0], rtol=1e-6)


def test_embeddings_that_are_not_finite_are_refused():
    batches = [(clips(1, 2, 3, 2, 16, 16), torch.tensor([0]))]
    with pytest.raises(UserError, match="trained.*not finite"):
        embed_all({"trained": lambda clip: pixels(clip) / 0}, batches, torch.device("cpu"))


@pytest.fixture
def extracted() -> Extracted:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=(3, 2, 4)).astype(np.float32)
        for name in ("trained", "frame differences")
    }
    errors = ForecastErrors(*(rng.normal(size=(3, 2)).astype(np.float32) for _ in range(3)))
    return Extracted(np.array([0, 2, 5]), arrays, {"trained": errors})


def test_the_cache_gives_back_what_it_was_given(tmp_path, extracted):
    path = tmp_path / "evaluation" / "features.npz"
    save(path, "key", extracted, {"labels": np.array(["a", "", "b"])})
    found = load(path, "key")
    assert found is not None
    np.testing.assert_array_equal(found.rows, extracted.rows)
    assert list(found.clips) == list(extracted.clips)
    for name in extracted.clips:
        np.testing.assert_array_equal(found.clips[name], extracted.clips[name])
    np.testing.assert_array_equal(
        found.errors["trained"].mean_latent, extracted.errors["trained"].mean_latent
    )
    with np.load(path) as file:
        np.testing.assert_array_equal(
            file["trained/embeddings"], extracted.clips["trained"].mean(axis=1)
        )
        assert file["labels"].tolist() == ["a", "", "b"]
    assert [other.name for other in path.parent.iterdir()] == ["features.npz"]


def test_another_key_a_torn_file_or_none_is_no_cache(tmp_path, extracted):
    path = tmp_path / "features.npz"
    assert load(path, "key") is None
    save(path, "key", extracted, {})
    assert load(path, "other") is None
    path.write_bytes(path.read_bytes()[:-200])
    assert load(path, "key") is None
    path.write_bytes(b"")
    assert load(path, "key") is None
