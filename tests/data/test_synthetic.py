"""synthetic: videos are rendered in one thread, so that pixels do not depend on the cores."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mofore.data import synthetic


def test_videos_are_rendered_in_one_thread(tmp_path: Path) -> None:
    seen = []

    def draw(*arguments: int) -> NDArray[np.uint8]:
        seen.append(torch.get_num_threads())
        return synthetic.motion_video(*arguments)  # type: ignore[arg-type]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        synthetic.write_motion_videos(tmp_path, textures=1, frames=8, draw=draw)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * len(synthetic.MOTIONS)
