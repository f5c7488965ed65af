"""Gradients between backward and update: averaged over ranks, measured and clipped.

Nothing here waits for the device: norm, clipping factor and the decision to skip an update stay
tensors. ZeRO stage 0 averages whole gradients while backward still runs; stages 1 and 2 leave the
averaging to DeepSpeed; stage 3 and an optimizer on the host leave the norm to it too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mofore.parallel.collectives import get_world_size

BUCKET_ELEMENTS = 2**24  # of gradients that ranks average at once: 64 MiB in fp32


class OverlappedAverage:
    """Averages the gradients of `parameters` over the ranks, bucket by bucket, during backward.

    A bucket is sent as soon as backward has its last gradient (Li et al. 2020, "PyTorch
    Distributed", arXiv 2006.15704, section 3.2.3). The order of buckets is fixed, so all ranks send
    the same one. is_last_backward: whether the current backward is the last of its step; the ones
    before it only accumulate.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], is_last_backward: Callable[[], bool]
    ) -> None:
        self.is_last_backward = is_last_backward
        # Backward reaches the last layers first.
        self.buckets = _fill_buckets(list(reversed(parameters)))
        self.bucket_of = {p: i for i, bucket in enumerate(self.buckets) for p in bucket}
        for parameter in self.bucket_of:
            parameter.register_post_accumulate_grad_hook(self._count)
        self._restart()

    def _restart(self) -> None:
        self.missing = [len(bucket) for bucket in self.buckets]
        self.sent: list[tuple[Tensor, list[Tensor], Any]] = []

    def _count(self, parameter: nn.Parameter) -> None:
        if not self.is_last_backward():
            return
        self.missing[self.bucket_of[parameter]] -= 1
        while len(self.sent) < len(self.buckets) and not self.missing[len(self.sent)]:
            self._send(self.buckets[len(self.sent)])

    def _send(self, bucket: list[nn.Parameter]) -> None:
        gradients = [p.grad for p in bucket if p.grad is not None]
        assert gradients, "every bucket has a parameter that the loss depends on"
        flat = torch.cat([gradient.view(-1) for gradient in gradients])
        self.sent.append((flat, gradients, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        """After the last backward: wait for the sums, on the device, and write the means."""
        for bucket in self.buckets[len(self.sent) :]:  # with parameters that got no gradient
            self._send(bucket)
        for flat, gradients, work in self.sent:
            work.wait()
            flat /= get_world_size()
            means = flat.split([gradient.numel() for gradient in gradients])
            shaped = [mean.view_as(g) for mean, g in zip(means, gradients, strict=True)]
            torch._foreach_copy_(gradients, shaped)
        self._restart()


def _fill_buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Consecutive parameters of at least BUCKET_ELEMENTS in total; the last bucket has the rest."""
    buckets: list[list[nn.Parameter]] = []
    full = True
    for parameter in parameters:
        if full:
            buckets.append([])
        buckets[-1].append(parameter)
        full = sum(p.numel() for p in buckets[-1]) >= BUCKET_ELEMENTS
    return buckets


class Gradients:
    """Finishes the gradients of one DeepSpeed engine at ZeRO stages 0 to 2.

    clip_grad: largest L2 norm; 0: no clipping.
    """

    def __init__(self, engine: Any, clip_grad: float) -> None:
        self.engine, self.clip_grad = engine, clip_grad
        self.stage = engine.zero_optimization_stage()
        self.average = None
        if self.stage == 0:
            # DeepSpeed's comes after the whole backward, and copies all gradients on one rank too.
            engine.enable_backward_allreduce = False
        if self.stage == 0 and get_world_size() > 1:
            trained = [p for p in engine.module.parameters() if p.requires_grad]
            self.average = OverlappedAverage(trained, engine.is_gradient_accumulation_boundary)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """After the last backward of a step: average, clip, and return the norm before clipping.

        f32 [], L2, over all ranks. Gradients that are not finite make the coming update change
        nothing: found_inf is torch's GradScaler protocol, in which a fused optimizer leaves
        weights, moments and step count as they are.
        """
        if self.average:
            self.average.finish()
        gradients = self._local()
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.stage and get_world_size() > 1:  # each rank holds a part
            square = norm.square()
            dist.all_reduce(square)
            norm = square.sqrt()
        if self.clip_grad:
            factor = (self.clip_grad / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factor)
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        optimizer.found_inf = (~norm.isfinite()).float()
        return norm

    def _local(self) -> list[Tensor]:
        """The averaged gradients that this rank's update uses."""
        if self.stage == 0:
            return [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        groups = self.engine.optimizer.averaged_gradients.values()
        return [gradient for group in groups for gradient in group if gradient is not None]
