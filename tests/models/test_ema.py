"""ema: the teacher update is its formula."""

import copy

import pytest
import torch
from torch import nn

from mofore.errors import UserError
from mofore.models.ema import TeacherConfig, update_teacher


def weight(momentum: float) -> torch.Tensor:
    return torch.tensor(1 - momentum)


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    teacher = copy.deepcopy(student).requires_grad_(False)
    return teacher, student


def test_several_updates_follow_the_formula():
    teacher, student = pair()
    expected = [p.detach().double() for p in teacher.parameters()]
    for momentum in (0.9, 0.5, 0.99, 0.996):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(torch.randn_like(p))
        update_teacher(teacher, student, weight(momentum))
        expected = [
            momentum * old + (1 - momentum) * new.detach().double()
            for old, new in zip(expected, student.parameters(), strict=True)
        ]
    for found, wanted in zip(teacher.parameters(), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_zero_copies_and_one_keeps(momentum):
    teacher, student = pair()
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    update_teacher(teacher, student, weight(momentum))
    expected = before if momentum else list(student.parameters())
    for found, wanted in zip(teacher.parameters(), expected, strict=True):
        assert torch.equal(found, wanted)


def test_small_updates_are_not_lost():
    """In bf16, momentum 0.9999 would round to no update; in fp32 it does not."""
    teacher, student = pair()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.01)
    before = [p.clone() for p in teacher.parameters()]
    update_teacher(teacher, student, weight(0.9999))
    assert all((p != old).any() for p, old in zip(teacher.parameters(), before, strict=True))


def test_student_is_unchanged_and_teacher_has_no_graph():
    teacher, student = pair()
    before = [p.clone() for p in student.parameters()]
    update_teacher(teacher, student, weight(0.5))
    assert all(torch.equal(p, old) for p, old in zip(student.parameters(), before, strict=True))
    assert not any(p.requires_grad or p.grad_fn for p in teacher.parameters())


@pytest.mark.parametrize("momentum", [0.3, 0.5, 0.9, 0.996, 0.99987])
def test_equal_to_torch_foreach_lerp_bit_for_bit(momentum):
    """The weight on the device, in fp32, gives the teacher that a number of the host gives."""
    torch.manual_seed(0)
    teacher, student = nn.Linear(64, 65), nn.Linear(64, 65)
    expected = [p.detach().clone() for p in teacher.parameters()]
    torch._foreach_lerp_(expected, [p.detach() for p in student.parameters()], 1.0 - momentum)
    update_teacher(teacher, student, weight(momentum))
    assert all(torch.equal(p, e) for p, e in zip(teacher.parameters(), expected, strict=True))


def test_weight_must_be_a_tensor_of_one_fp32_number():
    """A number would be taken for a momentum, an fp64 tensor would give another teacher."""
    teacher, student = pair()
    for wrong in (0.9, torch.tensor([0.1]), torch.tensor(0.1, dtype=torch.float64)):
        with pytest.raises((AssertionError, AttributeError)):
            update_teacher(teacher, student, wrong)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5])
def test_invalid_token_keep_ratio_raises(ratio):
    with pytest.raises(UserError, match="teacher.token_keep_ratio"):
        TeacherConfig(token_keep_ratio=ratio)


@pytest.mark.parametrize("momenta", [(-0.1, 1.0), (0.9, 0.8), (0.9, 1.1)])
def test_invalid_momenta_raise(momenta):
    with pytest.raises(UserError, match="teacher.*momentum"):
        TeacherConfig(*momenta)
