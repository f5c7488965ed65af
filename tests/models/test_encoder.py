"""encoder: a timm ViT to the last digit where it is one, and a video encoder where it should be."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from mofore.errors import UserError
from mofore.models.encoder import Attention, BackboneConfig, VideoEncoder

SHAPE = {"name": "vit_tiny_patch16_224", "embed_dim": 48, "depth": 2, "num_heads": 3, "patch": 8}


def clips(frames: int = 4, size: int = 32, batch: int = 2, width: int | None = None) -> torch.Tensor:
    shape = (batch, 3, frames, size, width or size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(frames: int = 4, size: int = 32, **words) -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(BackboneConfig(**SHAPE | words), frames, size).eval()


def timm_vit(name: str = SHAPE["name"], size: int = 32, **words) -> timm.models.VisionTransformer:
    torch.manual_seed(1)
    plain = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8, "img_size": size}
    return timm.create_model(name, **plain | words).eval()


@pytest.fixture
def weights(tmp_path) -> str:
    """A timm ViT's weights as a file, its classifier among them."""
    path = tmp_path / "vit.safetensors"
    save_file(timm_vit().state_dict(), path)
    return str(path)


def normalised(frames: torch.Tensor) -> torch.Tensor:
    """u8 [..., 3, H, W] as timm's models take it."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (frames / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "more"),
    [("vit_tiny_patch16_224", {}), ("vit_base_patch16_clip_224", {}), ("vit_small_patch14_reg4_dinov2", {}),
     ("vit_base_patch16_siglip_224", {"global_pool": ""}), ("vit_tiny_patch16_224", {"reg_tokens": 2})],
)  # fmt: skip
def test_frame_by_frame_it_is_timms_own_model(tmp_path, name, more):
    """2-D weights, tubelets of one frame: class, register and place of every kind of ViT are where they were."""
    vit = timm_vit(name, num_classes=0, **more)
    path = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), path)
    encoder = build(
        name=name, tubelet=1, attention=Attention.per_frame, pretrained_path=str(path),
        registers=more.get("reg_tokens"),
    )  # fmt: skip
    video = clips()
    tokens = encoder(video).unflatten(1, (4, 16))
    for t in range(4):
        expected = vit.forward_features(normalised(video[:, :, t]))[:, vit.num_prefix_tokens :]
        torch.testing.assert_close(tokens[:, t], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_a_still_clip_looks_like_its_frame(weights, tubelet):
    """Inflated weights: the tubelets of a still clip are the patches of its frame, under joint attention too."""
    vit, encoder = timm_vit(), build(tubelet=tubelet, pretrained_path=weights)
    still = clips(frames=1).expand(-1, -1, 4, -1, -1)
    seen = []
    encoder.embedding.register_forward_hook(lambda module, given, out: seen.append(out))
    encoder(still)
    expected = vit.patch_embed(normalised(still[:, :, 0]))
    assert seen[0].shape == (2, 4 // tubelet, 16, 48)
    for step in range(4 // tubelet):
        torch.testing.assert_close(seen[0][:, step], expected, rtol=1e-4, atol=1e-4)
    assert not encoder.time.any()


def test_weights_are_resampled_to_another_patch_and_size(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file(timm_vit(size=64, patch_size=16).state_dict(), path)
    encoder = build(pretrained_path=str(path), size=48)
    assert encoder(clips(size=48)).shape == (2, 2 * 36, 48)


def test_tokens_are_in_the_order_of_time_row_and_column():
    """A change in one tubelet changes, before attention, the token of its place alone."""
    encoder, video = build(), clips()
    encoder.blocks = torch.nn.ModuleList()
    other = video.clone()
    other[:, :, 2:4, 8:16, 24:32] = 0  # second step, second row, fourth column
    changed = (encoder(video) != encoder(other)).any(dim=2)[0].nonzero().flatten().tolist()
    assert changed == [16 + 4 + 3]


@pytest.mark.parametrize("registers", [None, 3])
def test_attention_reaches_other_frames_where_it_should(registers):
    video, other = clips(), clips()
    other[:, :, 2:] = 0
    for attention, reaches in ((Attention.joint, True), (Attention.per_frame, False)):
        encoder = build(registers=registers, attention=attention)
        first, second = (encoder(x)[:, :16] for x in (video, other))
        assert torch.equal(first, second) is not reaches


def test_joint_attention_knows_time_and_per_frame_does_not():
    """Frames in reverse: only time positions can tell, and only joint attention has them."""
    video = clips(frames=4)
    for attention, knows in ((Attention.joint, True), (Attention.per_frame, False)):
        encoder = build(tubelet=1, attention=attention)
        same = torch.allclose(encoder.embed(video), encoder.embed(video.flip(2)), atol=1e-5)
        assert same is not knows
        assert encoder.time.requires_grad is knows


def test_registers_take_part_and_are_dropped():
    plain, extra = build(), build(registers=4)
    assert extra.prefix.shape == (1, 5, 48)
    assert extra(clips()).shape == plain(clips()).shape == (2, 32, 48)
    loss = extra(clips()).square().mean()
    loss.backward()
    assert (extra.prefix.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize(("frames", "height", "width"), [(8, 32, 32), (2, 32, 32), (4, 64, 64), (6, 48, 32)])
def test_other_lengths_and_sizes(frames, height, width):
    encoder = build()
    tokens = encoder(clips(frames, height, width=width))
    assert tokens.shape == (2, frames // 2 * height // 8 * width // 8, 48)
    assert tokens.isfinite().all()
    assert encoder.embed(clips(frames, height, width=width)).shape == (2, 48)


@pytest.mark.parametrize(("frames", "size"), [(3, 32), (4, 36)])
def test_clips_that_do_not_divide_are_refused(frames, size):
    with pytest.raises(UserError, match="data.frames a multiple of backbone.tubelet"):
        build()(clips(frames, size))


@pytest.mark.parametrize("every", [1, 2])
def test_recomputing_blocks_changes_nothing(every):
    """Loss and gradients, bit for bit, with stochastic depth."""
    found = []
    for checkpoint_every in (0, every):
        encoder = build(depth=4, checkpoint_every=checkpoint_every, drop_path=0.5).train()
        torch.manual_seed(7)
        loss = encoder(clips(batch=8)).square().mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_recomputing_saves_activations():
    """The feature exists: blocks run twice."""
    for every, runs in ((0, 1), (1, 2)):
        encoder = build(checkpoint_every=every).train()
        calls = []
        encoder.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        encoder(clips()).mean().backward()
        assert len(calls) == runs


def test_patch_norm_forgets_brightness_and_contrast():
    """Half the contrast and a shift, in the encoder's own normalised pixels."""
    video = clips().float()
    for patch_norm in (True, False):
        encoder = build(patch_norm=patch_norm)
        dim = encoder.mean + 0.5 * (video - encoder.mean) + 0.4 * encoder.std
        apart = (encoder(dim) - encoder(video)).norm() / encoder(video).norm()
        assert bool(apart < 0.02) is patch_norm


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"patch": 7}, "backbone.patch"),
        ({"tubelet": 3}, "backbone.tubelet"),
        ({"name": "vit_tinny_patch16_224"}, "backbone.name=vit_tinny_patch16_224.*no such model"),
        ({"name": "resnet18"}, "backbone.name=resnet18"),
        ({"name": "eva02_tiny_patch14_224"}, "backbone.name=eva02_tiny_patch14_224 is a Eva"),
        ({"num_heads": 5}, "num_heads"),
        ({"pretrained_path": "/nowhere/vit.safetensors"}, "backbone.pretrained_path: no file /nowhere"),
    ],
)
def test_backbones_that_cannot_be_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        build(**words)


@pytest.mark.parametrize(
    "words", [{"patch": 0}, {"tubelet": 0}, {"checkpoint_every": -1}, {"drop_path": 1.0}]
)
def test_settings_outside_are_refused(words):
    with pytest.raises(UserError, match=f"backbone.{next(iter(words))}"):
        BackboneConfig(**SHAPE | words)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: timm_vit(depth=1), "has no blocks.1"),
        (lambda: timm_vit(embed_dim=96), "does not load .* size mismatch"),
        (lambda: timm.create_model("resnet10t"), "has no cls_token.*another model"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, made, said):
    path = tmp_path / "other.safetensors"
    save_file(made().state_dict(), path)
    with pytest.raises(UserError, match=f"backbone.pretrained_path: .*other.safetensors.*{said}"):
        build(pretrained_path=str(path))


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pth"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name):
    (tmp_path / name).write_text("not weights")
    with pytest.raises(UserError, match=f"backbone.pretrained_path: .*{name} does not load"):
        build(pretrained_path=str(tmp_path / name))


def test_tokens_that_are_dropped_cost_nothing_and_say_nothing():
    """All tokens kept is the plain forward; what is dropped has no part in the others."""
    config = BackboneConfig(embed_dim=32, depth=2, num_heads=2, patch=8)
    encoder = VideoEncoder(config, frames=4, size=16).eval()
    clips = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    every = torch.arange(8).expand(2, -1)
    torch.testing.assert_close(encoder(clips, every), encoder(clips))
    kept = torch.tensor([[0, 5, 6], [1, 2, 7]])  # 2 time steps of 2 x 2
    tokens = encoder(clips, kept)
    assert tokens.shape == (2, 3, 32)
    other = clips.clone()
    other[0, :, :2, :8, 8:] = 0  # token 1 of the first clip, which it does not see
    assert torch.equal(encoder(other, kept)[0], tokens[0])
    other[0, :, 2:, :8, 8:] = 0  # token 5, which it does
    assert not torch.equal(encoder(other, kept)[0], tokens[0])
