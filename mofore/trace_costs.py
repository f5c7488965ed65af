"""Where a step's time goes: a trace of torch's profiler -> time by kind of work; collectives.

A trace is the list of events that torch's profiler exports as JSON. On a GPU the kernels count and
on a CPU the operators of the main thread. Every moment counts once, so the costs of a step add up
to its time:

    computation > collectives > copies to the GPU > waiting for data > nothing of these (host)

Work that an earlier kind in this order hides costs nothing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Event = dict[str, Any]  # of a trace; ts and dur in microseconds
SMALLEST_SHARE = 0.001
DATA_WAIT = "data wait"  # the range around waiting for a batch
# Names by which torch's profiler shows collectives: of gloo, NCCL's kernels, their calls.
COLLECTIVE = re.compile(r"gloo:|ncclDevKernel|ncclKernel|c10d::")


class Kind(NamedTuple):
    """A kind of work. `pattern` matches operators (aten::mm, MmBackward0) and GPU kernels."""

    name: str
    pattern: re.Pattern[str]
    advice: str  # what makes it cheaper


def _kind(name: str, pattern: str, advice: str) -> Kind:
    return Kind(name, re.compile(pattern), advice)


# triton_poi, triton_per and triton_red are fused kernels of torch.compile, triton_tem products.
_FUSED = r"(?!triton_p|triton_r)"
# What torch computes, in the order in which names are matched: the last one takes all others.
COMPUTATION = (
    _kind(
        "attention",
        rf"^{_FUSED}.*(scaled_dot_product|ScaledDotProduct|flash|fmha|sdpa|mem_eff)",
        "fewer tokens: data.token_keep_ratio, teacher.token_keep_ratio, data.size, data.frames; on "
        "a GPU engine.precision=bf16",
    ),
    _kind(
        "matrix products",
        rf"^{_FUSED}.*(aten::(linear|matmul|addmm|mm|bmm|baddbmm|einsum)\b|(Addmm|Mm|Bmm|Linear)"
        r"Backward|gemm|nvjet|cutlass|cublas|splitK|gemv|triton_tem)",
        "the work itself, a high share is good; cheaper with fewer tokens (data.token_keep_ratio, "
        "teacher.token_keep_ratio) and on a GPU with engine.precision=bf16",
    ),
    _kind(
        "layer norms",
        r"(?i)(layer|rms|group)_?norm|GammaBeta|RowwiseMoments|cuComputeGradInput",
        "on a GPU engine.compile=auto, which fuses them with their neighbours",
    ),
    _kind(
        "optimizer, clipping, teacher update",
        rf"^{_FUSED}.*(^Optimizer\.|_foreach_|multi_tensor_apply|_fused_adam|FusedAdam|lerp)",
        "one update for more videos: a larger global_batch; engine.zero_stage=1 shares the update "
        "among the ranks",
    ),
    _kind(
        "copies and casts",
        rf"^{_FUSED}.*(aten::(to|_to_copy|copy_|cat|stack|clone|contiguous|reshape|flatten|repeat\w*|"
        r"index\w*|gather|scatter|zero_|zeros|fill_|(un)?flatten_dense_tensors)\b|(ToCopy|Copy|Cat|"
        r"Stack|Clone|Index\w*|Gather)Backward|copy_kernel|BatchedCopy|Memcpy DtoD|Memset|"
        r"[Gg]ather|[Ss]catter|index_)",
        "on a GPU engine.compile=auto and engine.precision=bf16; fewer tokens",
    ),
    _kind(
        "elementwise operations and reductions",
        r"^aten::|^triton_|cpp_fused",
        "on a GPU engine.compile=auto; fewer tokens",
    ),
)
COLLECTIVES = _kind(
    "collectives, not hidden by computation",
    COLLECTIVE.pattern,
    "they include waiting for the slowest rank, so check that all ranks have equal CPUs and data; "
    "a lower engine.zero_stage, at stages 1 to 3 another "
    "engine.deepspeed.zero_optimization.reduce_bucket_size, or more micro-batches between two "
    "updates (a larger global_batch with the same micro_batch)",
)
HOST_COPIES = _kind(
    "copies between host and GPU, not hidden",
    r"Memcpy (HtoD|DtoH)",
    "smaller clips (data.size, data.frames), or more work for each: a larger backbone",
)
DATA = _kind(
    DATA_WAIT,
    f"^{DATA_WAIT}$",
    "more CPU cores for each rank and workers=auto, smaller source videos, faster storage",
)
HOST = _kind(
    "host: Python and kernel launches",
    r"(?!)",  # what is left
    "a larger micro_batch; on a GPU engine.compile=auto",
)
KINDS = (*COMPUTATION, COLLECTIVES, HOST_COPIES, DATA, HOST)


class Cost(NamedTuple):
    """What one kind of work costs in a step."""

    kind: Kind
    milliseconds: float
    share: float  # of the step
    costliest: str  # its operator or kernel with the longest total time; "" if it has none


class TraceCosts(NamedTuple):
    costs: list[Cost]  # highest first; those below SMALLEST_SHARE are left out
    milliseconds: float  # of a step, under the profiler
    collectives: float  # milliseconds of a step in collectives, hidden ones included


def trace_costs(events: Iterable[Event]) -> TraceCosts:
    """The costs of a step, means over the steps of the trace.

    events: of a trace whose steps are marked by the profiler (ProfilerStep#N).
    """
    events = sorted(
        (event for event in events if event.get("ph") == "X" and event["dur"] > 0),
        key=lambda event: (event["ts"], -event["dur"]),
    )
    steps = [event for event in events if _is_step(event)]
    assert steps, "the trace has no steps"
    start = steps[0]["ts"]
    end = max(event["ts"] + event["dur"] for event in events if _is_step(event) or _on_gpu(event))
    on_gpu = any(event["cat"] == "kernel" for event in events)
    work = _gpu_work(events) if on_gpu else _cpu_work(events, steps[0]["tid"])
    spans: dict[str, list[tuple[float, float]]] = {kind.name: [] for kind in KINDS}
    names: dict[str, Counter[str]] = {kind.name: Counter() for kind in KINDS}
    for kind, event in work:
        spans[kind.name].append((event["ts"] - start, event["ts"] - start + event["dur"]))
        if kind is not DATA:
            names[kind.name][short_name(event["name"])] += event["dur"]
    *measured, rest = exclusive_times([spans[kind.name] for kind in KINDS[:-1]], end - start)
    (collectives, _) = exclusive_times([spans[COLLECTIVES.name]], end - start)
    costs = [
        Cost(kind, micros / 1e3 / len(steps), micros / (end - start), _first(names[kind.name]))
        for kind, micros in zip(KINDS, [*measured, rest], strict=True)
    ]
    costs.sort(key=lambda cost: -cost.milliseconds)
    return TraceCosts(
        [cost for cost in costs if cost.share >= SMALLEST_SHARE],
        (end - start) / 1e3 / len(steps),
        collectives / 1e3 / len(steps),
    )


def _is_step(event: Event) -> bool:
    return event["cat"] == "user_annotation" and event["name"].startswith("ProfilerStep#")


def _on_gpu(event: Event) -> bool:
    return event["cat"] in ("kernel", "gpu_memcpy", "gpu_memset")


def _first(names: Counter[str]) -> str:
    return names.most_common(1)[0][0] if names else ""


def _gpu_work(events: Sequence[Event]) -> Iterator[tuple[Kind, Event]]:
    """What runs on the GPU, of any stream, and the host's waiting for data."""
    for event in events:
        if _on_gpu(event):
            yield kind_of(event["name"]) or COMPUTATION[-1], event
        elif event["cat"] == "user_annotation" and event["name"] == DATA_WAIT:
            yield DATA, event


def _cpu_work(events: Sequence[Event], main_thread: int) -> Iterator[tuple[Kind, Event]]:
    """The outermost known operators of the main thread, and the collectives of gloo's threads.

    events: by start, the longer one first. An operator includes the operators that it calls.
    """
    end = 0.0
    for event in events:
        kind = kind_of(event["name"])
        if kind is None or (event["tid"] == main_thread and event["ts"] < end):
            continue
        if event["tid"] == main_thread:
            end = event["ts"] + event["dur"]
            yield kind, event
        elif kind is COLLECTIVES:
            yield kind, event


def kind_of(name: str) -> Kind | None:
    """The kind of an operator or kernel; None for a function that is neither."""
    order = (COLLECTIVES, HOST_COPIES, DATA, *COMPUTATION)
    return next((kind for kind in order if kind.pattern.search(name)), None)


def exclusive_times(spans: Sequence[Sequence[tuple[float, float]]], end: float) -> list[float]:
    """The time in [0, end] that each list of (start, stop) covers and no earlier list does.

    The last number is the time that no list covers.
    """
    arrays = [np.array(each, dtype=np.float64).reshape(-1, 2).clip(0, end) for each in spans]
    edges = np.unique(np.concatenate([np.array([0, end]), *(each.ravel() for each in arrays)]))
    widths, free, times = np.diff(edges), np.ones(len(edges) - 1, dtype=bool), []
    for each in arrays:
        depth = np.zeros(len(edges), dtype=np.int64)
        np.add.at(depth, np.searchsorted(edges, each[:, 0]), 1)
        np.add.at(depth, np.searchsorted(edges, each[:, 1]), -1)
        covered = free & (depth.cumsum()[:-1] > 0)
        times.append(float(widths[covered].sum()))
        free &= ~covered
    return [*times, float(widths[free].sum())]


def short_name(name: str) -> str:
    """An operator's or kernel's name without the arguments of C++ templates and calls."""
    name = name.removeprefix("autograd::engine::evaluate_function: ").removeprefix("void ")
    name = name.replace("(anonymous namespace)::", "")
    base = re.split(r"[<(]", name)[0].strip()
    functor = re.search(r"\w+(Functor|_kernel_cuda|KernelImpl)\b", name[len(base) :])
    return f"{base} {functor[0]}" if functor else base
