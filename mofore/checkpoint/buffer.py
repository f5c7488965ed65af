"""Host memory that a rank's state is copied into before it is written."""

import contextlib
import logging
import weakref
from collections.abc import Sequence

import torch

from mofore.types import Shard

logger = logging.getLogger(__name__)


class HostBuffer:
    """Host memory for `size` fp32 numbers; page-locked for copies from a GPU if `pin`.

    torch's own allocator of page-locked memory rounds up to the next power of two: 8 GiB for 5 GiB.
    So plain memory is registered with CUDA instead, which locks no more than its pages. If CUDA
    refuses (`ulimit -l`, for example), the memory stays pageable: the copy is slower, and right.
    """

    def __init__(self, size: int, pin: bool) -> None:
        self.values = torch.empty(size)
        if pin and size:
            self._pin()

    def _pin(self) -> None:
        cudart, address = torch.cuda.cudart(), self.values.data_ptr()
        status = int(cudart.cudaHostRegister(address, self.values.nbytes, 0))
        if status == 0:
            # Runs before the memory is freed, and at exit. CUDA must not keep freed memory.
            weakref.finalize(self, cudart.cudaHostUnregister, address)
            return
        _clear_cuda_error()
        logger.warning(
            "CUDA cannot page-lock %.2f GB for checkpoints (error %d: see `ulimit -l`): a save "
            "blocks a step for longer.",
            self.values.nbytes / 1e9,
            status,
        )

    def copy(self, shards: Sequence[Shard]) -> None:
        """Copy the values of the shards, one after the other; done on return."""
        at = 0
        for shard in shards:
            self.values[at : at + len(shard.values)].copy_(shard.values, non_blocking=True)
            at += len(shard.values)
        if any(shard.values.is_cuda for shard in shards):
            torch.cuda.current_stream().synchronize()


def _clear_cuda_error() -> None:
    """Clear CUDA's last error, or the next kernel of the training would raise it."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
