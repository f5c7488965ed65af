"""schedules: identities of the learning rate and the teacher's momentum."""

import pytest

from mofore.schedules import cosine, learning_rate, teacher_momentum

STEPS, WARMUP, PEAK, FINAL = 100, 10, 2.0, 0.5


def rates(warmup: int = WARMUP, final: float = FINAL) -> list[float]:
    return [learning_rate(step, STEPS, warmup, PEAK, final) for step in range(STEPS + 1)]


def test_cosine_at_its_ends_and_its_middle():
    assert cosine(3.0, 1.0, 0, 10) == pytest.approx(3.0)
    assert cosine(3.0, 1.0, 5, 10) == pytest.approx(2.0)
    assert cosine(3.0, 1.0, 10, 10) == pytest.approx(1.0)
    for step in range(11):  # point-symmetric about the middle
        assert cosine(3.0, 1.0, step, 10) + cosine(3.0, 1.0, 10 - step, 10) == pytest.approx(4.0)


@pytest.mark.parametrize("step", [-5, 15])
def test_cosine_is_constant_outside_its_range(step):
    assert cosine(3.0, 1.0, step, 10) == pytest.approx(3.0 if step < 0 else 1.0)
    assert cosine(3.0, 1.0, 1, 0) == pytest.approx(1.0)


def test_warm_up_is_linear():
    assert rates()[:WARMUP] == pytest.approx([PEAK * (i + 1) / WARMUP for i in range(WARMUP)])
    assert rates()[0] > 0
    assert max(rates()) == pytest.approx(PEAK)


def test_learning_rate_decays_from_peak_to_final():
    after = rates()[WARMUP:]
    assert after[0] == pytest.approx(PEAK)
    assert after == sorted(after, reverse=True)
    assert after[-1] == pytest.approx(FINAL)


def test_constant_learning_rate_without_warm_up():
    assert rates(warmup=0, final=PEAK) == pytest.approx([PEAK] * (STEPS + 1))


def test_warm_up_longer_than_the_run():
    assert learning_rate(99, 100, 200, PEAK, FINAL) == pytest.approx(PEAK / 2)


def test_momentum_rises_from_start_to_end():
    values = [teacher_momentum(step, STEPS, 0.9, 1.0) for step in range(STEPS + 1)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == pytest.approx((0.9, 1.0))
    assert {teacher_momentum(step, STEPS, 0.7, 0.7) for step in range(STEPS)} == {0.7}
