"""Use an exported encoder: load it, and embed video files. For example:

encoder = mofore.load_encoder("encoders/mine")
embeddings = mofore.embed(encoder, ["a.mp4", "b.mp4"])  # f32 [2, D]
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from mofore.data.dataset import read_clips
from mofore.data.decode import open_video, probe
from mofore.data.storage import DecodeError
from mofore.data.windows import clip_seconds, clips_fit, evenly_spaced_clips
from mofore.errors import UserError
from mofore.export import CONFIG_FILE, FORMAT, WEIGHTS_FILE
from mofore.host_copy import HostCopy
from mofore.models.backbone import Attention, BackboneConfig
from mofore.models.encoder import VideoEncoder

PROGRESS_DELAY = 2.0  # seconds before the progress bar of `embed` appears

VideoPath = str | os.PathLike[str]


def load_encoder(folder: VideoPath) -> VideoEncoder:
    """Load the encoder that `mofore export RUN DIR` wrote into `folder`, in eval mode on the CPU.

    Raises UserError if the folder has no encoder, the files are damaged or do not fit each other,
    or they have another format.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}: write one with `mofore export RUN {folder}`.")
    document = _read_config(folder / CONFIG_FILE)
    try:
        backbone = document["backbone"]
        config = BackboneConfig(**backbone | {"attention": Attention[backbone["attention"]]})
        encoder = VideoEncoder(config, document["frames"], document["size"], document["fps"])
    except (KeyError, TypeError) as error:
        raise _damaged(folder / CONFIG_FILE, error) from error
    try:
        encoder.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}. Export the encoder "
            f"again with `mofore export RUN {folder}`."
        ) from error
    return encoder.eval()


def _read_config(path: Path) -> dict[str, Any]:
    """encoder.json. Raises UserError if it is no JSON object of this format."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document.get("format")
    except (ValueError, AttributeError) as error:
        raise _damaged(path, error) from error
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found}, this version of MoFore reads format {FORMAT}. "
            f"Export the encoder again with `mofore export RUN {path.parent}`."
        )
    return document


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is damaged: {error}. Export the encoder again with "
        f"`mofore export RUN {path.parent}`."
    )


@torch.inference_mode()
def embed(
    encoder: VideoEncoder,
    paths: VideoPath | Sequence[VideoPath],
    views: int = 4,
    batch_size: int = 8,
) -> NDArray[np.float32]:
    """Embed video files: f32 [len(paths), D], the embeddings that `mofore evaluate` computes.

    A video's embedding is the mean over `views` clips spread evenly over it. paths: one path or
    URL, or a list of them; one path gives f32 [1, D]. batch_size: videos per forward pass. Each
    file is decoded once. The encoder runs on its own device, in its own mode and under the caller's
    autocast; `load_encoder` returns it in eval mode. A GPU computes one batch while the next is
    decoded.

    Raises UserError, naming the file, if a file does not decode or is shorter than one clip of
    `encoder.frames` frames at `encoder.fps`.
    """
    if encoder.fps is None:
        raise UserError("encoder.fps is None: set it to the frames per second of a clip.")
    if views < 1 or batch_size < 1:
        raise UserError(f"views={views} and batch_size={batch_size} must be at least 1.")
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    uris = [os.fspath(path) for path in paths]
    device = encoder.temporal_positions.device
    on_gpu = device.type == "cuda"

    def view_embeddings() -> Iterator[tuple[Tensor]]:
        for start in range(0, len(uris), batch_size):
            batch = uris[start : start + batch_size]
            clips = torch.stack([_read_clips(encoder, uri, views) for uri in batch])
            clips = (clips.pin_memory() if on_gpu else clips).to(device, non_blocking=on_gpu)
            # One view at a time, as in evaluation: the activations of one batch, not of `views`.
            yield (torch.stack([encoder.embed(view) for view in clips.unbind(dim=1)], dim=1),)

    embeddings = [np.empty((0, encoder.dim), dtype=np.float32)]
    # disable=None: no bar unless stderr is a terminal.
    with tqdm(total=len(uris), desc="embed", disable=None, delay=PROGRESS_DELAY) as progress:
        for (of_batch,) in on_host(view_embeddings(), device):
            embeddings.append(of_batch.mean(axis=1))
            progress.update(len(of_batch))
    return np.concatenate(embeddings)


def on_host(
    batches: Iterable[Sequence[Tensor]], device: torch.device
) -> Iterator[list[NDArray[Any]]]:
    """The tensors of each batch as NumPy arrays; a GPU's arrive one batch late.

    So a GPU computes a batch while the host reads the results of the one before and prepares the
    next. The host waits once per batch, for the copies of the batch that it reads.
    """
    late = 1 if device.type == "cuda" else 0
    pending: list[list[HostCopy]] = []
    for tensors in batches:
        pending.append([HostCopy(tensor) for tensor in tensors])
        if len(pending) > late:
            yield _read(pending.pop(0))
    yield from map(_read, pending)


def _read(copies: Sequence[HostCopy]) -> list[NDArray[Any]]:
    # Arrays of their own, because the caller may keep them and pinned memory is scarce.
    return [copy.wait().numpy().copy() for copy in copies]


def _read_clips(encoder: VideoEncoder, uri: str, views: int) -> Tensor:
    """Clips u8 [views, 3, T, size, size] spread evenly over the video at `uri`."""
    assert encoder.fps is not None
    frames, fps = encoder.frames, encoder.fps
    try:
        video = probe(uri)
        if not clips_fit(video.duration, frames, fps, 1):
            raise UserError(
                f"{uri} has {video.duration:.2f} s, one clip of {frames} frames at {fps:g} fps "
                f"needs {clip_seconds(frames, fps):.2f} s: leave it out."
            )
        times = video.frame_index().times
        indices = evenly_spaced_clips(times, video.duration, views, frames, fps)
        with open_video(video) as reader:
            return read_clips(reader, indices, encoder.size)
    except DecodeError as error:
        raise UserError(f"{error}. Leave it out, or repair the file.") from None
