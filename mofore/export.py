"""An encoder as two files, to use anywhere: encoder.safetensors (fp32 weights) and encoder.json (how to build it)."""

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mofore.data.manifest import replacing
from mofore.errors import UserError
from mofore.models.encoder import Attention, BackboneConfig, VideoEncoder

FORMAT = 1
WEIGHTS, ABOUT = "encoder.safetensors", "encoder.json"


class ClipEncoder(nn.Module):
    """Clips u8 [B, 3, T, H, W] -> embeddings f32 [B, D]: the mean token of a pretrained teacher.

    `frames`, `fps` and `size` are those of pretraining; `encoder(clips)` gives the tokens [B, N, D].
    """

    def __init__(self, encoder: VideoEncoder, frames: int, fps: float, size: int) -> None:
        super().__init__()
        self.encoder, self.frames, self.fps, self.size = encoder, frames, fps, size
        self.dim = encoder.dim

    def forward(self, clips: Tensor) -> Tensor:
        return self.encoder.embed(clips)


def write_encoder(
    encoder: VideoEncoder,
    backbone: BackboneConfig,
    frames: int,
    fps: float,
    size: int,
    source: dict[str, Any],
    out: Path,
) -> None:
    """Both files into the folder `out`. `source` says where the weights come from (run, step, digest)."""
    out.mkdir(parents=True, exist_ok=True)
    plain = {key: value.name if isinstance(value, Enum) else value for key, value in asdict(backbone).items()}
    plain["pretrained_path"] = None  # the weights are here
    about = {
        "format": FORMAT,
        "frames": frames,
        "fps": fps,
        "size": size,
        "backbone": plain,
        "source": source,
    }
    with replacing(out / WEIGHTS) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, temporary)
    with replacing(out / ABOUT) as temporary:
        Path(temporary).write_text(json.dumps(about, indent=1))


def load_encoder(folder: str | Path) -> ClipEncoder:
    """The encoder that `mofore export` wrote into `folder`, in eval mode on the CPU.

    Raises UserError where the folder holds none, or its files do not fit each other.
    """
    folder = Path(folder)
    for name in (ABOUT, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} holds no {name}: write one with `mofore export run=RUN --out {folder}`."
            )
    try:
        about = json.loads((folder / ABOUT).read_text())
    except json.JSONDecodeError as reason:
        raise UserError(f"{folder / ABOUT} is damaged: {reason}. Export the encoder again.") from reason
    if about.get("format") != FORMAT:
        raise UserError(f"{folder / ABOUT} has format {about.get('format')}, this MoFore reads {FORMAT}.")
    backbone = about["backbone"]
    config = BackboneConfig(**backbone | {"attention": Attention[backbone["attention"]]})
    encoder = VideoEncoder(config, about["frames"], about["size"])
    try:
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, SafetensorError) as reason:
        raise UserError(f"{folder / WEIGHTS} does not fit {ABOUT}: {reason}") from reason
    return ClipEncoder(encoder, about["frames"], about["fps"], about["size"]).eval()
