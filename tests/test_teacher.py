import copy

import pytest
import torch
from torch import nn

from sdft.teacher import EMATeacher


def moved(model: nn.Module, by: float) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


def test_update_equals_the_average_in_float64():
    torch.manual_seed(0)
    student = nn.Linear(5, 3)
    teacher = EMATeacher(student, rate=0.02)
    expected = [parameter.detach().double() for parameter in student.parameters()]
    for _ in range(50):
        student = moved(student, 0.1)
        teacher.update(student)
        expected = [
            0.02 * theirs.detach().double() + 0.98 * own
            for own, theirs in zip(expected, student.parameters(), strict=True)
        ]
    for own, reference in zip(teacher.model.parameters(), expected, strict=True):
        torch.testing.assert_close(own.double(), reference, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rate", "follows"), [(0.0, False), (1.0, True)])
def test_rate_zero_is_frozen_and_rate_one_is_live(rate, follows):
    start = nn.Linear(4, 4)
    teacher = EMATeacher(start, rate)
    student = moved(start, 1.0)
    teacher.update(student)
    target = student if follows else start
    torch.testing.assert_close(teacher.model.weight, target.weight)


def test_reset_takes_the_student_over():
    teacher = EMATeacher(nn.Linear(4, 4), 0.1)
    student = nn.Linear(4, 4)
    teacher.reset(student)
    assert torch.equal(teacher.model.weight, student.weight)


def test_teacher_is_frozen_stays_in_eval_mode_and_shares_nothing():
    student = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    teacher = EMATeacher(student, 0.1).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.model[0].weight.data_ptr() != student[0].weight.data_ptr()


def test_tied_weights_stay_tied_in_the_teacher(tiny):
    teacher = EMATeacher(tiny.model, 0.5)
    embedding = teacher.model.get_input_embeddings().weight
    assert teacher.model.get_output_embeddings().weight is embedding


def test_small_updates_are_not_lost_to_rounding():
    student = nn.Linear(100, 100)
    teacher = EMATeacher(student, rate=0.01)
    moved_student = moved(student, 1e-3)
    before = teacher.model.weight.clone()
    teacher.update(moved_student)
    assert (teacher.model.weight != before).float().mean() > 0.9


def test_a_rate_outside_of_zero_to_one_is_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        EMATeacher(nn.Linear(2, 2), 1.5)


def test_half_precision_students_are_refused():
    with pytest.raises(ValueError, match="bfloat16"):
        EMATeacher(nn.Linear(2, 2).bfloat16(), 0.1)
