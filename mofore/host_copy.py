"""Numbers that the device computes and the host reads later."""

import torch
from torch import Tensor


class HostCopy:
    """A copy of a device tensor that begins now and is read later.

    The copy is queued behind the work that computes the numbers. `wait` and `read` wait for it
    alone, not for what was queued after it.
    """

    def __init__(self, numbers: Tensor) -> None:
        # From a GPU: into pinned memory, without waiting.
        self.numbers = numbers.to("cpu", non_blocking=numbers.is_cuda)
        self.copied = None
        if numbers.is_cuda:  # the stream of its own device, which may not be the current one
            self.copied = torch.cuda.current_stream(numbers.device).record_event()

    def wait(self) -> Tensor:
        """The numbers, in pinned memory if they come from a GPU."""
        if self.copied:
            self.copied.synchronize()
        return self.numbers

    def read(self) -> list[float]:
        """The numbers, f32 [n] as floats."""
        return self.wait().tolist()
