"""Memory of a training step beyond the state, from a step of the model's own code without data.

The model is built of fake tensors (torch's FakeTensorMode): they have shapes, dtypes and storages,
but no values. A forward and backward pass of them allocates and frees what a real one does, so the
count of their storages is its memory, whatever the model does.

The tensors pretend to be on a CPU, under its autocast, but take the GPU's way through the norms.
The CPU's attention kernel keeps for backward what flash attention on a GPU keeps: queries, keys,
values, output, and the logarithms of the sums of the softmax. Compiled blocks keep as much.
"""

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mofore.config import PretrainConfig
from mofore.data.dataset import kept_tokens
from mofore.models.layers import SameDtypeLayerNorm
from mofore.models.objective import Pretraining, build_meta_pretraining
from mofore.precision import Precision, autocast
from mofore.types import Batch, Keys

CPU = torch.device("cpu")


class GradientUse(NamedTuple):
    """What becomes of the gradients of a micro-batch, and of the weights' bf16 copies."""

    accumulated: bool = False  # earlier micro-batches of the step have left a gradient to add to
    copied: bool = False  # each is copied, into a buffer that the ranks average
    # Elements of a bucket that each gradient is moved to; 0: they stay where they are. When the
    # first bucket is full, the rank's share of all gradients is allocated.
    bucket: int = 0
    share: float = 0.0
    weight_copies: bool = True  # autograd keeps the bf16 copies of weights that autocast makes


class StepMemory(NamedTuple):
    """Bytes of one micro-batch, beyond the weights."""

    batch: int  # clips, gaps and indices of tokens
    keys: int  # of the contrastive loss, of the global batch
    # What follows does not contain batch and keys.
    teacher: int  # the most while the teacher computes the targets
    targets: int  # they stay until the student has used them
    saved: int  # what student, forecaster and losses keep for backward
    peak: int  # the most in forward and backward, with the gradients, without the targets


def step_memory(
    config: PretrainConfig,
    videos: int,
    precision: Precision,
    use: GradientUse,
    on_gpu: bool = True,
) -> StepMemory:
    """The memory of a micro-batch of `videos` of one rank. precision: a resolved one.

    on_gpu: whether the norms run as on a GPU, which under bf16 keeps fewer fp32 tensors.
    """
    model = build_meta_pretraining(config.model())
    with FakeTensorMode():
        make_fake(model)
        for layer in model.modules() if on_gpu else ():
            if isinstance(layer, SameDtypeLayerNorm):
                layer.forward = layer.forward_cuda  # type: ignore[method-assign]
        batch, keys = _fake_inputs(config, model, videos)
        weights = list(model.parameters())
        trained = [weight for weight in weights if weight.requires_grad]
        known = [*weights, *model.buffers(), *batch, *keys]
        counter = StorageCounter(known, [] if use.weight_copies else weights)
        saved = SavedTensors(known)
        with counter:
            with autocast(precision, CPU), torch.no_grad():
                targets = model(batch)
            teacher, held = counter.peak, counter.live
            if use.accumulated:
                for weight in trained:
                    weight.grad = torch.empty_like(weight)
            gradients = _Gradients(trained, use)
            for weight in trained:
                weight.register_post_accumulate_grad_hook(gradients.take)
            counter.peak = counter.live
            with saved.hooks(), autocast(precision, CPU):
                loss = model(batch, targets, keys).total
            torch.autograd.backward(loss)
        return StepMemory(
            batch=sum(tensor.nbytes for tensor in batch),
            keys=sum(tensor.nbytes for tensor in keys),
            teacher=teacher,
            targets=held,
            saved=saved.total,
            peak=counter.peak - held,
        )


class _Gradients:
    """Takes the gradients as backward completes them."""

    def __init__(self, trained: list[nn.Parameter], use: GradientUse) -> None:
        self.use, self.taken, self.buffers = use, 0, list[Tensor]()
        self.share = round(use.share * sum(weight.numel() for weight in trained))

    def take(self, weight: Tensor) -> None:
        assert weight.grad is not None
        if self.use.copied:
            self.buffers.append(torch.empty_like(weight.grad))
        if not self.use.bucket:
            return
        weight.grad = None
        self.taken += weight.numel()
        if self.taken > self.use.bucket and not self.buffers:
            self.buffers.append(torch.empty(self.share))


class StorageCounter(TorchDispatchMode):
    """Counts the bytes of all storages that operations allocate, while they live.

    known: tensors that exist already and do not count. uncounted: nor do casts of these.
    """

    def __init__(self, known: Iterable[Tensor], uncounted: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages = {tensor.untyped_storage()._cdata for tensor in known}
        self.uncounted = {tensor.untyped_storage()._cdata for tensor in uncounted}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        results = function(*args, **(kwargs or {}))
        is_cast = function is torch.ops.aten._to_copy.default
        counts = not (is_cast and args[0].untyped_storage()._cdata in self.uncounted)
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._add(result.untyped_storage(), counts)
        return results

    def _add(self, storage: torch.UntypedStorage, counts: bool) -> None:
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self.storages:
            return
        self.storages.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.storages.discard(key)
        self.live -= size


class SavedTensors:
    """Counts the bytes that autograd saves for backward, each storage once.

    known: tensors that exist anyway and do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.sizes: dict[int, int] = {}

    def hooks(self) -> saved_tensors_hooks:
        """The context in which the forward pass runs."""
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.sizes[storage._cdata] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def make_fake(model: nn.Module) -> None:
    """Replace meta parameters and buffers by fake ones on the CPU; call it in a FakeTensorMode."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape)
            setattr(module, name, nn.Parameter(values, parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape))


def _fake_inputs(config: PretrainConfig, model: Pretraining, videos: int) -> tuple[Batch, Keys]:
    """A micro-batch, and the keys of the global batch."""
    data, dim = config.data, model.student.dim
    clip = (3, data.frames, data.size, data.size)
    ratios = (data.token_keep_ratio, config.teacher.token_keep_ratio)
    seen, known = (kept_tokens(ratio, config.tokens) for ratio in ratios)
    batch = Batch(
        context=torch.empty(videos, *clip, dtype=torch.uint8),
        targets=torch.empty(videos, data.targets, *clip, dtype=torch.uint8),
        gaps=torch.empty(videos, data.targets),
        rows=torch.empty(videos, dtype=torch.int64),
        visible=torch.empty(videos, seen, dtype=torch.int64),
        teacher_visible=torch.empty(videos, known, dtype=torch.int64),
    )
    contexts = config.global_batch if model.symmetric else 0
    return batch, Keys(
        torch.empty(config.global_batch * data.targets, dim), torch.empty(contexts, dim)
    )
