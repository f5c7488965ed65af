"""`mofore profile`, the costs that it reads from a trace, and the share of collectives."""

import gzip
import json
import re
from pathlib import Path

import pytest
import torch

from mofore import profiling
from mofore.config import PretrainConfig, compose, flatten_dict, to_plain_dict
from mofore.flops import flops_per_video
from mofore.gpus import find_gpu
from mofore.launch.cli import main
from mofore.profiling import build_step_cost, measure_communication
from mofore.trace_costs import KINDS, TraceCosts, exclusive_times, kind_of, short_name, trace_costs
from tests.communication import LATE
from tests.ranks import run_ranks
from tests.small import SMALL

MAIN, GLOO = 1, 2  # threads


def event(category: str, name: str, start: float, end: float, tid: int = MAIN) -> dict:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start, "tid": tid}


def steps(*ends: float) -> list[dict]:
    """The profiler's marks of steps that follow one another from 0 on."""
    starts = (0.0, *ends[:-1])
    return [
        event("user_annotation", f"ProfilerStep#{number}", *span)
        for number, span in enumerate(zip(starts, ends, strict=True), start=9)
    ]


def by_kind(found: TraceCosts) -> dict[str, float]:
    """Milliseconds of a step by the first word of the kind."""
    return {cost.kind.name.split()[0].strip(":,"): cost.milliseconds for cost in found.costs}


# ------------------------------------------------------------------------------------------- traces


def test_on_a_gpu_every_moment_counts_once() -> None:
    """A collective counts where no kernel computes, a copy where neither runs, and so on."""
    found = trace_costs(
        [
            *steps(5_000, 10_000),
            event("kernel", "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", 1_000, 3_000, 7),
            event("kernel", "ncclDevKernel_AllReduce_Sum_f32_RING_LL(int)", 2_000, 4_000, 20),
            event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 3_500, 4_200, 21),
            event("user_annotation", "data wait", 4_100, 6_000),
            # Work that the host started before the last step's end may run after it.
            event("kernel", "void flash_bwd_kernel<int>(int)", 9_000, 12_000, 7),
            # None of these is work of the GPU.
            event("gpu_user_annotation", "nccl:all_reduce", 0, 12_000, 20),
            event("cpu_op", "aten::mm", 0, 9_000),
            event("cuda_runtime", "cudaLaunchKernel", 0, 9_000),
        ]
    )
    expected = {"matrix": 1.0, "collectives": 0.5, "copies": 0.1, "data": 0.9, "attention": 1.5}
    assert by_kind(found) == pytest.approx(expected | {"host": 2.0})
    assert found.collectives == pytest.approx(1.0)
    assert found.milliseconds == pytest.approx(6.0)
    assert sum(cost.share for cost in found.costs) == pytest.approx(1.0)


def test_on_a_cpu_an_operator_includes_what_it_calls() -> None:
    found = trace_costs(
        [
            *steps(1_000),
            event("cpu_op", "aten::linear", 100, 400),
            event("cpu_op", "aten::addmm", 150, 390),
            event("cpu_op", "aten::copy_", 160, 200),
            event("cpu_op", "autograd::engine::evaluate_function: GeluBackward0", 390, 520),
            event("cpu_op", "aten::gelu_backward", 400, 500),
            event("user_annotation", "gloo:all_reduce", 450, 700, GLOO),
            event("cpu_op", "aten::mul", 450, 700, GLOO),
            event("user_annotation", "data wait", 800, 900),
            event("cpu_op", "aten::stack", 810, 890),
        ]
    )
    expected = {"matrix": 0.3, "elementwise": 0.1, "collectives": 0.2, "data": 0.1, "host": 0.3}
    assert by_kind(found) == pytest.approx(expected)
    assert found.collectives == pytest.approx(0.25)


def test_exclusive_times_add_up() -> None:
    spans = [[(1.0, 3.0), (2.0, 4.0)], [(0.0, 2.0), (3.5, 9.0)], []]
    assert exclusive_times(spans, 8.0) == [3.0, 5.0, 0.0, 0.0]
    assert exclusive_times([[]], 8.0) == [0.0, 8.0]


# As torch, cuBLAS, cuDNN, NCCL and Triton name them.
NAMES = {
    "attention": (
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::bfloat16_t>>()",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x128x64_kernel0_0",
        "fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention::Params)",
        "aten::scaled_dot_product_attention",
        "autograd::engine::evaluate_function: ScaledDotProductFlashAttentionForCpuBackward0",
    ),
    "matrix products": (
        "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT",
        "sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32_execute_kernel__5x_cublas",
        "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x256_16x3_tn_align4>(int)",
        "triton_tem_fused_mm_3",
        "aten::linear",
        "autograd::engine::evaluate_function: AddmmBackward0",
    ),
    "layer norms": (
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float>(int)",
        "triton_per_fused_add_native_layer_norm_3",
        "aten::layer_norm",
    ),
    "optimizer, clipping, teacher update": (
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor>()",
        "Optimizer.step#AdamW.step",
        "aten::_foreach_lerp_",
    ),
    "copies and casts": (
        "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda()>(int)",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy<unsigned int, 3>(int)",
        "Memcpy DtoD (Device -> Device)",
        "Memset (Device)",
        "aten::to",
    ),
    "elementwise operations and reductions": (
        "triton_poi_fused_gelu_7",
        "triton_red_fused__scaled_dot_product_flash_attention_sum_2",
        "triton_poi_fused__to_copy_addmm_4",
        "aten::gelu",
    ),
    "collectives, not hidden by computation": (
        "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "gloo:all_gather",
        "c10d::allreduce_",
    ),
    "copies between host and GPU, not hidden": ("Memcpy HtoD (Pinned -> Device)",),
    "data wait": ("data wait",),
}


@pytest.mark.parametrize("kind", NAMES)
def test_kinds_of_names(kind: str) -> None:
    for name in NAMES[kind]:
        found = kind_of(name)
        assert found is not None, name
        assert found.name == kind, name


@pytest.mark.parametrize(
    "name", ["cudaLaunchKernel", "Torch-Compiled Region: 0/0", "ProfilerStep#9", "MulBackward0"]
)
def test_functions_that_are_neither_operators_nor_kernels(name: str) -> None:
    assert kind_of(name) is None


def test_short_names() -> None:
    gelu = "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(int)>"
    assert short_name(gelu) == "at::native::vectorized_elementwise_kernel GeluCUDAKernelImpl"
    assert short_name("autograd::engine::evaluate_function: MmBackward0") == "MmBackward0"
    assert short_name("Memcpy HtoD (Pinned -> Device)") == "Memcpy HtoD"


def test_advice_names_keys_that_exist() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    ours = flatten_dict(to_plain_dict(PretrainConfig()))
    prefix = "engine.deepspeed.zero_optimization."
    keys = {prefix + key for key in DeepSpeedZeroConfig.model_fields} | set(ours)
    assert len(KINDS) == 10
    for kind in KINDS:
        named = re.findall(r"[a-z_]+(?:\.[a-z_]+)+|[a-z]+_[a-z_]+(?==)", kind.advice)
        assert set(named) <= keys, kind.name


# ---------------------------------------------------------------------------------- mofore profile


def rows(table: str) -> dict[str, float]:
    """The share of each kind in percent, as it is printed."""
    found = re.findall(r"^ *[\d.]+ +([\d.]+)%  ([^(\n]+)", table, re.MULTILINE)
    return {name.strip(): float(share) for share, name in found}


def test_profile_of_videos(
    tmp_path: Path,
    manifest: Path,
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [f"data.manifest={manifest}", "engine.peak_tflops=1", *SMALL]
    assert main(["profile", *keys, "--out", "measured/here"]) == 0
    table = capsys.readouterr().out
    out = tmp_path / "measured/here"
    assert (out / "profile.txt").read_text() == table
    assert [path.name for path in tmp_path.iterdir()] == ["measured"]  # no run folder
    shares = rows(table)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    names = {kind.name for kind in KINDS}
    assert shares.keys() <= names
    assert names - shares.keys() <= {
        "collectives, not hidden by computation",
        "copies between host and GPU, not hidden",
    }
    with gzip.open(out / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    marks = [each for each in events if str(each.get("name")).startswith("ProfilerStep#")]
    assert len({each["name"] for each in marks}) == 20
    found = trace_costs(events)
    assert sum(cost.milliseconds for cost in found.costs) <= found.milliseconds * 1.001
    # The header's rates follow from its time.
    milliseconds, rate = re.search(r"a step: ([\d.]+) ms .*, ([\d.]+) samples/s", table).groups()
    assert float(rate) == pytest.approx(4e3 / float(milliseconds), rel=0.01)
    assert re.search(r"TFLOP/s, [\d.]+% MFU", table)


@pytest.mark.ranks
def test_profile_without_a_manifest_on_two_ranks(tmp_path: Path) -> None:
    keys = [*SMALL, "engine.zero_stage=1", "micro_batch=1"]
    output = run_ranks(2, "mofore.launch.cli", "profile", *keys, "--out", str(tmp_path))
    assert output.count("2 rank(s), CPU, fp32") == 1
    assert (tmp_path / "profile.txt").read_text() in output
    assert "collectives, not hidden by computation" in rows(output)
    assert float(re.search(r"^collectives: ([\d.]+) ms", output, re.MULTILINE)[1]) > 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["data.manifest=absent.parquet"], "absent.parquet"),
        (["data.sise=3"], "Did you mean data.size?"),
        (["global_batch=5", "micro_batch=2"], "global_batch=5"),
        (["--out", "file/below"], "--out file/below"),
    ],
)
def test_mistakes(
    keys: list[str],
    message: str,
    tmp_path: Path,
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["profile", *SMALL, *keys]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mofore: error: ")
    assert message in captured.err
    assert captured.out == ""


# ----------------------------------------------------------------------------- sources of metrics


@pytest.mark.ranks
@pytest.mark.parametrize("stage", [1, 3])
def test_collectives_of_two_ranks_are_measured(stage: int) -> None:
    output = run_ranks(2, "tests.communication", str(stage))
    ranks = json.loads(output.splitlines()[-1])
    (plain, waiting, none), (_, late, _) = ranks
    assert plain > 0
    assert none is None
    # Rank 0 waits for rank 1, and not the other way round.
    assert LATE * 0.7 < waiting - late < LATE * 1.3


def test_the_profiler_is_off_afterwards() -> None:
    with measure_communication(torch.device("cpu")) as communication:
        pass
    assert communication.fraction is None
    assert not torch.autograd._profiler_enabled()
    with pytest.raises(ValueError, match="within"), measure_communication(torch.device("cpu")):
        raise ValueError("within")
    assert not torch.autograd._profiler_enabled()


def test_flops_of_a_step_and_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(PretrainConfig, [*SMALL, "data.manifest=none"])
    cost = build_step_cost(config, torch.device("cpu"))
    assert cost == (4 * flops_per_video(config).total, 1, None)
    config.engine.peak_tflops = 0.5
    assert build_step_cost(config, torch.device("cpu")).peak_flops == 0.5e12
    # On a GPU the data sheet's rate for the precision in use.
    config.engine.peak_tflops, name = None, "NVIDIA H100 80GB HBM3"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert find_gpu(name).bf16_tflops == 989
    assert build_step_cost(config, torch.device("cuda")).peak_flops == 989e12
    name = "A card without a data sheet"
    assert build_step_cost(config, torch.device("cuda")).peak_flops is None


@pytest.mark.gpu
def test_kernels_are_measured_on_a_gpu(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in place of NCCL's kernels, which one rank does not start."""
    monkeypatch.setattr(profiling, "COLLECTIVE", re.compile(r"nvjet|.*gemm|.*cutlass"))
    matrix = torch.ones(8192, 8192, device=cuda, dtype=torch.bfloat16)
    _ = matrix @ matrix
    with measure_communication(cuda) as communication:
        for _ in range(20):
            _ = matrix @ matrix
    assert communication.fraction is not None
    assert communication.fraction > 0.8


@pytest.mark.gpu
def test_profile_on_a_gpu(
    cuda: torch.device, tmp_path: Path, environment: None, capsys: pytest.CaptureFixture
) -> None:
    keys = ["backbone=vit_small", "global_batch=8", "data.size=112"]
    assert main(["profile", *keys, "--out", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    shares = rows(table)
    assert {"matrix products", "attention", "layer norms"} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(100, abs=1)
    assert torch.cuda.get_device_name(cuda) in table
