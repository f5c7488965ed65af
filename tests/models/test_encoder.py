"""encoder: equal to timm's ViT frame by frame, and a video encoder under joint attention."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from mofore.errors import UserError
from mofore.models.backbone import Attention, BackboneConfig
from mofore.models.encoder import VideoEncoder

SHAPE = {
    "name": "vit_tiny_patch16_224",
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "patch_size": 8,
}


def clips(
    frames: int = 4, size: int = 32, batch: int = 2, width: int | None = None
) -> torch.Tensor:
    shape = (batch, 3, frames, size, width or size)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def build(frames: int = 4, size: int = 32, **settings) -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(BackboneConfig(**SHAPE | settings), frames, size).eval()


def timm_vit(name: str = SHAPE["name"], size: int = 32, **options) -> timm.models.VisionTransformer:
    torch.manual_seed(1)
    defaults = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8, "img_size": size}
    return timm.create_model(name, **defaults | options).eval()


@pytest.fixture
def weights(tmp_path) -> str:
    """A file with the weights of a timm ViT, with a classifier."""
    path = tmp_path / "vit.safetensors"
    save_file(timm_vit().state_dict(), path)
    return str(path)


def normalised(frames: torch.Tensor) -> torch.Tensor:
    """u8 [..., 3, H, W], normalised as timm's models expect."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (frames / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_base_patch16_clip_224", {}),
        ("vit_small_patch14_reg4_dinov2", {}),
        ("vit_base_patch16_siglip_224", {"global_pool": ""}),
        ("vit_tiny_patch16_224", {"reg_tokens": 2}),
    ],
)
def test_per_frame_encoder_equals_timm(tmp_path, name, options):
    """With 2-D weights and tubelets of one frame, for each kind of prefix tokens and positions."""
    vit = timm_vit(name, num_classes=0, **options)
    path = tmp_path / "vit.safetensors"
    save_file(vit.state_dict(), path)
    encoder = build(
        name=name,
        tubelet_size=1,
        attention=Attention.per_frame,
        pretrained_path=str(path),
        reg_tokens=options.get("reg_tokens"),
    )
    video = clips()
    tokens = encoder(video).unflatten(1, (4, 16))
    for t in range(4):
        expected = vit.forward_features(normalised(video[:, :, t]))[:, vit.num_prefix_tokens :]
        torch.testing.assert_close(tokens[:, t], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tubelet", [1, 2, 4])
def test_static_clip_embeds_as_its_frame(weights, tubelet):
    """With inflated weights, tubelets of a static clip embed as the patches of its frame."""
    vit, encoder = timm_vit(), build(tubelet_size=tubelet, pretrained_path=weights)
    static = clips(frames=1).expand(-1, -1, 4, -1, -1)
    seen = []
    encoder.tubelet_embed.register_forward_hook(lambda module, args, out: seen.append(out))
    encoder(static)
    expected = vit.patch_embed(normalised(static[:, :, 0]))
    steps = seen[0].unflatten(1, (4 // tubelet, 16))
    for step in range(4 // tubelet):
        torch.testing.assert_close(steps[:, step], expected, rtol=1e-4, atol=1e-4)
    assert not encoder.temporal_positions.any()


def test_weights_are_resampled_to_another_patch_size_and_grid(tmp_path):
    path = tmp_path / "large.safetensors"
    save_file(timm_vit(size=64, patch_size=16).state_dict(), path)
    encoder = build(pretrained_path=str(path), size=48)
    assert encoder(clips(size=48)).shape == (2, 2 * 36, 48)


def test_tokens_are_ordered_by_time_row_and_column():
    """Without blocks, a change in one tubelet changes only the token at its position."""
    encoder, video = build(), clips()
    encoder.blocks = torch.nn.ModuleList()
    other = video.clone()
    other[:, :, 2:4, 8:16, 24:32] = 0  # second step, second row, fourth column
    changed = (encoder(video) != encoder(other)).any(dim=2)[0].nonzero().flatten().tolist()
    assert changed == [16 + 4 + 3]


@pytest.mark.parametrize("registers", [None, 3])
def test_only_joint_attention_reaches_other_frames(registers):
    video, other = clips(), clips()
    other[:, :, 2:] = 0
    for attention, reaches in ((Attention.joint, True), (Attention.per_frame, False)):
        encoder = build(reg_tokens=registers, attention=attention)
        first, second = (encoder(x)[:, :16] for x in (video, other))
        assert torch.equal(first, second) is not reaches


def test_only_joint_attention_depends_on_frame_order():
    """Only joint attention uses temporal positions, so only it can tell reversed frames."""
    video = clips(frames=4)
    for attention, depends in ((Attention.joint, True), (Attention.per_frame, False)):
        encoder = build(tubelet_size=1, attention=attention)
        same = torch.allclose(encoder.embed(video), encoder.embed(video.flip(2)), atol=1e-5)
        assert same is not depends
        assert encoder.temporal_positions.requires_grad is depends


def test_registers_get_gradients_and_are_dropped():
    plain, registers = build(), build(reg_tokens=4)
    assert registers.prefix_tokens.shape == (1, 5, 48)
    assert registers(clips()).shape == plain(clips()).shape == (2, 32, 48)
    loss = registers(clips()).square().mean()
    loss.backward()
    assert (registers.prefix_tokens.grad.abs().sum(dim=2) > 0).all()


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(8, 32, 32), (2, 32, 32), (4, 64, 64), (6, 48, 32)]
)
def test_other_lengths_and_sizes(frames, height, width):
    encoder = build()
    tokens = encoder(clips(frames, height, width=width))
    assert tokens.shape == (2, frames // 2 * height // 8 * width // 8, 48)
    assert tokens.isfinite().all()
    assert encoder.embed(clips(frames, height, width=width)).shape == (2, 48)


@pytest.mark.parametrize(("frames", "size"), [(3, 32), (4, 36)])
def test_clips_that_do_not_divide_raise(frames, size):
    with pytest.raises(UserError, match="data.frames a multiple of backbone.tubelet_size"):
        build()(clips(frames, size))


@pytest.mark.parametrize("every", [1, 2])
def test_grad_checkpointing_changes_nothing(every):
    """Loss and gradients are equal bit for bit, with stochastic depth."""
    found = []
    for checkpoint_every in (0, every):
        encoder = build(depth=4, grad_checkpoint_every=checkpoint_every, drop_path=0.5).train()
        torch.manual_seed(7)
        loss = encoder(clips(batch=8)).square().mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_grad_checkpointing_recomputes_blocks():
    """A checkpointed block runs twice."""
    for every, runs in ((0, 1), (1, 2)):
        encoder = build(grad_checkpoint_every=every).train()
        calls = []
        encoder.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        encoder(clips()).mean().backward()
        assert len(calls) == runs


def test_patch_norm_removes_brightness_and_contrast():
    """Half the contrast and an offset, in normalised pixels."""
    video = clips().float()
    for patch_norm in (True, False):
        encoder = build(patch_norm=patch_norm)
        changed = encoder.mean + 0.5 * (video - encoder.mean) + 0.4 * encoder.std
        tokens, expected = (encoder(each.round().to(torch.uint8)) for each in (changed, video))
        assert bool((tokens - expected).norm() / expected.norm() < 0.02) is patch_norm


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 7}, "backbone.patch_size"),
        ({"tubelet_size": 3}, "backbone.tubelet_size"),
        ({"name": "vit_tinny_patch16_224"}, "backbone.name=vit_tinny_patch16_224.*no such model"),
        ({"name": "resnet18"}, "backbone.name=resnet18"),
        ({"name": "eva02_tiny_patch14_224"}, "backbone.name=eva02_tiny_patch14_224 is a Eva"),
        ({"num_heads": 5}, "num_heads"),
        (
            {"pretrained_path": "/nowhere/vit.safetensors"},
            "backbone.pretrained_path: no file /nowhere",
        ),
    ],
)
def test_impossible_backbones_raise(settings, message):
    with pytest.raises(UserError, match=message):
        build(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"patch_size": 0}, {"tubelet_size": 0}, {"grad_checkpoint_every": -1}, {"drop_path": 1.0}],
)
def test_invalid_settings_raise(settings):
    with pytest.raises(UserError, match=f"backbone.{next(iter(settings))}"):
        BackboneConfig(**SHAPE | settings)


@pytest.mark.parametrize(
    ("make_vit", "message"),
    [
        (lambda: timm_vit(depth=1), "has no blocks.1"),
        (lambda: timm_vit(embed_dim=96), "does not load .* size mismatch"),
        (lambda: timm.create_model("resnet10t"), "has no cls_token.*another model"),
    ],
)
def test_weights_of_another_model_raise(tmp_path, make_vit, message):
    path = tmp_path / "other.safetensors"
    save_file(make_vit().state_dict(), path)
    with pytest.raises(
        UserError, match=f"backbone.pretrained_path: .*other.safetensors.*{message}"
    ):
        build(pretrained_path=str(path))


@pytest.mark.parametrize("name", ["junk.safetensors", "junk.pth"])
def test_file_without_weights_raises(tmp_path, name):
    (tmp_path / name).write_text("not weights")
    with pytest.raises(UserError, match=f"backbone.pretrained_path: .*{name} does not load"):
        build(pretrained_path=str(tmp_path / name))


def test_dropped_tokens_have_no_effect():
    """All tokens visible equals the plain forward; a dropped token does not change the others."""
    config = BackboneConfig(embed_dim=32, depth=2, num_heads=2, patch_size=8)
    encoder = VideoEncoder(config, frames=4, size=16).eval()
    clips = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    all_tokens = torch.arange(8).expand(2, -1)
    torch.testing.assert_close(encoder(clips, all_tokens), encoder(clips))
    visible = torch.tensor([[0, 5, 6], [1, 2, 7]])  # 2 time steps of 2 x 2
    tokens = encoder(clips, visible)
    assert tokens.shape == (2, 3, 32)
    other = clips.clone()
    other[0, :, :2, :8, 8:] = 0  # token 1 of the first clip, not visible
    assert torch.equal(encoder(other, visible)[0], tokens[0])
    other[0, :, 2:, :8, 8:] = 0  # token 5, visible
    assert not torch.equal(encoder(other, visible)[0], tokens[0])
