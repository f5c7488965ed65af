"""benchmarks.scale: what it says of many ranks is what the library does on many ranks."""

import pytest

from benchmarks import scale_traffic
from benchmarks.rank_slices import computed_slices, real_slices
from benchmarks.scale import SMALL, small_config
from benchmarks.scale_checkpoint import (
    plan_checkpoint,
    planned_resume,
    random_state,
    resume,
    write_checkpoint,
)
from benchmarks.scale_traffic import check_sample_order, measure_heartbeats
from benchmarks.simulated_ranks import Parameter, model_parameters, tensor_shapes

RANKS = 64


@pytest.fixture(scope="module")
def parameters() -> list[Parameter]:
    """Matrices that every rank has a part of, and vectors shorter than the number of ranks."""
    shapes = {"a.weight": [40, 30], "a.bias": [30], "b.weight": [7, 11], "none": [1, 0, 4]}
    trained = [
        Parameter(f"student.{name}", shape, int(len(shape) == 1)) for name, shape in shapes.items()
    ]
    teacher = [Parameter(f"teacher.{name}", shape, None) for name, shape in shapes.items()]
    return [*trained, *teacher]


def test_a_thousand_ranks_see_the_samples_of_one():
    """Over two epochs, with other ranks from half of the steps on."""
    assert check_sample_order(1024, videos=5000, global_batch=2048, steps=4) == 4 * 2048


def test_a_wrong_order_is_found(monkeypatch):
    order = scale_traffic.global_batch_indices
    monkeypatch.setattr(
        scale_traffic, "global_batch_indices", lambda *arguments: order(*arguments)[::-1]
    )
    with pytest.raises(AssertionError):
        check_sample_order(4, videos=50, global_batch=16, steps=2)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 3, RANKS])
def test_ranks_hold_each_number_once_or_all_of_it(parameters, stage, ranks):
    """Once where it is sharded, on every rank where it is replicated."""
    covered: dict[str, list[tuple[int, int]]] = {}
    for rank in range(ranks):
        for name, start, length, replicated in computed_slices(parameters, stage, rank, ranks):
            if rank == 0 or not replicated:
                covered.setdefault(name, []).append((start, start + length))
    for name, shape in tensor_shapes(parameters).items():
        edges = sorted(each for each in covered.get(name, []) if each[0] < each[1])
        size = 0 if 0 in shape else [1200, 30, 77][[[40, 30], [30], [7, 11]].index(shape)]
        assert [stop for _, stop in edges][-1:] == ([size] if size else [])
        assert [start for start, _ in edges[1:]] == [stop for _, stop in edges[:-1]]


@pytest.mark.parametrize("stage", [0, 1, 3])
@pytest.mark.parametrize("ranks", [RANKS, RANKS // 2, 3])
def test_a_rank_opens_the_files_that_it_reads(tmp_path, parameters, stage, ranks):
    """Real files; `resume` compares every number that a rank reads."""
    state = random_state(parameters)
    folder = write_checkpoint(tmp_path, parameters, stage, RANKS, state)
    costs = resume(folder, parameters, stage, ranks, state)
    planned = plan_checkpoint(parameters, stage, RANKS)
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]
    assert planned.file_bytes == sizes
    assert costs == [planned_resume(planned, parameters, stage, ranks, r) for r in range(ranks)]
    assert sum(cost.verified for cost in costs) == RANKS  # each file by one rank
    own_parts = sum(cost.bytes_read for cost in costs)
    assert own_parts == sum(4 * tensor.numel() for tensor in state.values())  # each number once
    if ranks == RANKS:
        assert max(cost.opened for cost in costs) == 1


def test_another_stage_reads_the_same_state(tmp_path, parameters):
    state = random_state(parameters)
    for written, read in ((3, 1), (1, 3), (0, 3)):
        folder = write_checkpoint(tmp_path / f"{written}-{read}", parameters, written, 8, state)
        resume(folder, parameters, read, 5, state)


def test_heartbeats_are_counted():
    cost = measure_heartbeats(16)
    assert cost.requests_of_rank_0 == 16  # its report, and one question for each other rank
    assert cost.requests_of_others == 3  # its report, the verdict, rank 0's report
    assert cost.open_files == 32


@pytest.mark.ranks
@pytest.mark.slow
def test_the_arithmetic_is_deepspeeds():
    """Engines of two gloo ranks, and of one of 1,024 that torch's fake process group makes up."""
    parameters = model_parameters(small_config())
    for ranks, fake_rank in ((2, None), (1024, 1023)):
        for stage, by_rank in real_slices(list(SMALL), ranks, fake_rank).items():
            for rank, held in by_rank.items():
                assert held == computed_slices(parameters, stage, rank, ranks), (stage, rank)
