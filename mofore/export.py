"""Write an encoder as two files, which `mofore.load_encoder` reads.

encoder.safetensors has the fp32 weights, encoder.json all that is needed to build the encoder.
"""

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mofore.files import replace_file, write_json
from mofore.models.encoder import VideoEncoder

FORMAT = 2
WEIGHTS_FILE, CONFIG_FILE = "encoder.safetensors", "encoder.json"


def write_encoder(encoder: VideoEncoder, source: dict[str, Any], out: Path) -> None:
    """Write both files into the folder `out`, which is created if it does not exist.

    source: where the weights come from (run, step, digest), kept in encoder.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    backbone = {
        key: value.name if isinstance(value, Enum) else value
        for key, value in asdict(encoder.config).items()
    }
    document = {
        "format": FORMAT,
        "frames": encoder.frames,
        "fps": encoder.fps,
        "size": encoder.size,
        "backbone": backbone | {"pretrained_path": None},  # the weights are in this folder
        "source": source,
    }
    weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    with replace_file(out / WEIGHTS_FILE) as temporary:
        save_file(weights, temporary)
    write_json(out / CONFIG_FILE, document)
