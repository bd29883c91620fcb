import math
from itertools import combinations

import pytest
import torch

from sdft.evaluation.metrics import (
    DEFINITIONS,
    AccuracyMatrix,
    average_accuracy,
    backward_transfer,
    backward_transfer_per_task,
    forgetting,
    forward_transfer,
    forward_transfer_per_task,
    last_measured_stage,
    learning_accuracy,
    learning_gain,
    normalised_gain,
    pass_at_k,
)
from sdft.evaluation.retention_record import (
    format_matrix,
    matrix_from_rows,
    retention_record,
    shortened,
    stage_row,
)

NAN = math.nan
TASKS = ("a", "b", "c")
# Three tasks; the numbers in the tests below were worked out by hand from this matrix.
ROWS = [
    [0.10, 0.20, 0.00],  # before training
    [0.80, 0.30, 0.10],  # after a
    [0.85, 0.90, 0.20],  # after b: it helped a
    [0.50, 0.70, 0.60],  # after c
]


def matrix(num_rows=4):
    """The first rows of the example; the others not measured."""
    missing = [[NAN] * 3] * (4 - num_rows)
    return torch.tensor(ROWS[:num_rows] + missing, dtype=torch.float64)


def rows(num_rows=4):
    return [
        stage_row(TASKS, stage, 10 * stage, dict(zip(TASKS, values, strict=True)))
        for stage, values in enumerate(ROWS[:num_rows])
    ]


def close(actual, expected):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return torch.allclose(actual, expected, equal_nan=True, atol=1e-12)


def test_the_worked_example_when_all_is_measured():
    assert close(average_accuracy(matrix()), (0.5 + 0.7 + 0.6) / 3)
    assert close(learning_accuracy(matrix()), [0.8, 0.9, 0.6])
    assert close(learning_gain(matrix()), [0.7, 0.7, 0.6])
    assert close(backward_transfer_per_task(matrix()), [-0.30, -0.20, NAN])
    assert close(forgetting(matrix()), [0.35, 0.20, NAN])
    assert close(backward_transfer(matrix()), -0.25)
    assert close(forward_transfer_per_task(matrix()), [NAN, 0.1, 0.2])
    assert close(forward_transfer(matrix()), 0.15)


def test_the_worked_example_under_way():
    under_way = matrix(3)
    assert close(average_accuracy(under_way), (0.85 + 0.9 + 0.2) / 3)
    assert close(learning_accuracy(under_way), [0.8, 0.9, NAN])
    assert close(backward_transfer_per_task(under_way), [0.05, NAN, NAN])
    assert close(forgetting(under_way), [-0.05, NAN, NAN])
    assert close(backward_transfer(under_way), 0.05)
    assert close(forward_transfer(under_way), 0.15)
    assert close(forward_transfer(matrix(2)), 0.1)


@pytest.mark.parametrize("num_rows", [0, 1])
def test_nothing_but_the_average_is_known_before_training(num_rows):
    early = matrix(num_rows)
    assert close(average_accuracy(early), 0.1 if num_rows else NAN)
    scalars = (backward_transfer, forward_transfer)
    per_task = (backward_transfer_per_task, forgetting, learning_gain, learning_accuracy)
    assert all(measure(early).isnan() for measure in scalars)
    assert all(measure(early).isnan().all() for measure in per_task)


def test_a_single_task_is_neither_forgotten_nor_transferred():
    single = torch.tensor([[0.1], [0.9]], dtype=torch.float64)
    assert close(average_accuracy(single), 0.9)
    assert close(learning_gain(single), [0.8])
    assert close(backward_transfer_per_task(single), [NAN])
    assert close(forgetting(single), [NAN])
    assert backward_transfer(single).isnan()
    assert forward_transfer(single).isnan()


def test_forgetting_is_never_less_than_minus_backward_transfer_of_random_matrices():
    for seed in range(20):
        random = torch.rand(6, 5, generator=torch.Generator().manual_seed(seed)).double()
        transfer = backward_transfer_per_task(random)
        assert close(backward_transfer(random), transfer[:-1].mean())
        assert (forgetting(random)[:-1] >= -transfer[:-1]).all()


def test_forgetting_counts_what_the_base_model_knew():
    knew = torch.tensor([[0.9, 0.0], [0.5, 0.1], [0.5, 0.8]], dtype=torch.float64)
    assert close(forgetting(knew), [0.4, NAN])
    assert close(backward_transfer_per_task(knew), [0.0, NAN])


def test_a_hole_in_the_matrix_is_never_read_as_zero():
    holed = matrix()
    holed[1, 0] = NAN  # task a just after its stage
    assert close(backward_transfer_per_task(holed), [NAN, -0.20, NAN])
    assert close(forgetting(holed), [0.35, 0.20, NAN])
    assert backward_transfer(holed).isnan()
    holed[3, 2] = NAN
    assert average_accuracy(holed).isnan()
    holed[:3, 0] = NAN
    assert close(forgetting(holed), [NAN, 0.20, NAN])


def test_last_measured_stage_skips_empty_rows():
    assert [last_measured_stage(matrix(n)) for n in range(5)] == [None, 0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"one row more than it has tasks, got \(3, 3\)"):
        last_measured_stage(torch.zeros(3, 3))


def test_normalised_gain_is_zero_at_the_base_and_one_at_the_best():
    accuracy = torch.tensor([0.2, 0.5, 0.8, 0.1])
    gain = normalised_gain(accuracy, torch.tensor(0.2), torch.tensor(0.8))
    assert torch.allclose(gain, torch.tensor([0.0, 0.5, 1.0, -1 / 6]))


def test_normalised_gain_is_unknown_where_no_method_beats_the_base():
    gain = normalised_gain(torch.tensor([0.2, 0.1]), torch.tensor(0.2), torch.tensor([0.2, 0.1]))
    assert gain.isnan().all()


@pytest.mark.parametrize(("num_samples", "num_correct"), [(5, 0), (5, 1), (6, 2), (6, 4), (4, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(num_samples, num_correct):
    samples = [True] * num_correct + [False] * (num_samples - num_correct)
    for k in range(1, num_samples + 1):
        subsets = list(combinations(samples, k))
        assert pass_at_k(num_samples, num_correct, k) == pytest.approx(
            sum(map(any, subsets)) / len(subsets)
        )


def test_pass_at_k_holds_for_numbers_of_samples_that_overflow_floats():
    assert pass_at_k(4000, 40, 1) == pytest.approx(0.01)
    assert 0.7 < pass_at_k(4000, 40, 128) < 0.75
    assert pass_at_k(4000, 4000, 2000) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses_counts_that_do_not_fit(n, c, k):
    with pytest.raises(ValueError, match="num_samples"):
        pass_at_k(n, c, k)


def filled(num_rows=4):
    metric = AccuracyMatrix(3)
    for stage, values in enumerate(ROWS[:num_rows]):
        for index, accuracy in enumerate(values):
            metric.update(stage, index, accuracy)
    return metric


def test_the_matrix_metric_holds_what_it_was_given():
    assert close(filled(2).compute(), matrix(2))


def test_measuring_again_replaces_the_entry():
    metric = filled()
    metric.update(0, 0, 0.4)
    assert metric.compute()[0, 0] == 0.4


def test_state_dict_round_trip_keeps_the_matrix_and_shares_nothing():
    original, copy = filled(3), AccuracyMatrix(3)
    copy.load_state_dict(original.state_dict())
    copy.update(3, 0, 1.0)
    assert close(copy.compute()[:3], ROWS[:3])
    assert close(original.compute(), matrix(3))


def test_reset_forgets_every_measurement():
    metric = filled()
    metric.reset()
    assert metric.matrix.isnan().all()


@pytest.mark.parametrize(("stage", "task"), [(4, 0), (-1, 0), (0, 3), (0, -1)])
def test_the_matrix_metric_refuses_entries_outside(stage, task):
    with pytest.raises(IndexError, match=f"stage {stage}, task {task} lies outside"):
        AccuracyMatrix(3).update(stage, task, 0.5)


@pytest.mark.parametrize("accuracy", [-0.1, 1.5, 71.0, math.inf])
def test_the_matrix_metric_refuses_percentages(accuracy):
    with pytest.raises(ValueError, match="give a fraction between 0 and 1"):
        AccuracyMatrix(3).update(0, 0, accuracy)


def test_a_matrix_of_no_tasks_is_refused():
    with pytest.raises(ValueError, match="num_tasks is 0"):
        AccuracyMatrix(0)


def test_rows_and_matrix_say_the_same():
    assert close(matrix_from_rows(TASKS, rows()), matrix())
    assert close(matrix_from_rows(TASKS, rows()[::-1]), matrix())


def test_a_row_names_the_task_trained_before_it_and_holds_none_for_the_unmeasured():
    row = stage_row(TASKS, 2, 7, {"a": 1 / 3, "b": NAN, "c": None})
    assert row == {
        "stage": 2,
        "after": "b",
        "global_step": 7,
        "accuracy": {"a": 0.333333, "b": None, "c": None},
    }
    assert stage_row(TASKS, 0, 0, dict.fromkeys(TASKS))["after"] is None
    with pytest.raises(ValueError, match="stage 4 lies outside 0 to 3"):
        stage_row(TASKS, 4, 0, dict.fromkeys(TASKS))


@pytest.mark.parametrize("tasks", [("b", "a", "c"), ("a", "c"), ("a", "x", "c"), ("a",)])
def test_rows_of_another_sequence_are_refused(tasks):
    with pytest.raises(ValueError, match="measured for another sequence"):
        matrix_from_rows(tasks, rows())


def test_a_sequence_that_grew_by_a_task_keeps_its_rows():
    longer = matrix_from_rows((*TASKS, "d"), rows())
    assert close(longer[:4, :3], matrix())
    assert longer[:, 3].isnan().all()


def test_the_record_holds_the_worked_example_with_none_for_the_unknown():
    record = retention_record("SDFT", "tiny", TASKS, rows())
    assert record["average_accuracy"] == 0.6
    assert record["learning_accuracy"] == {"a": 0.8, "b": 0.9, "c": 0.6}
    assert record["forgetting"] == {"a": 0.35, "b": 0.2, "c": None}
    assert record["backward_transfer"] == -0.25
    assert record["forward_transfer"] == 0.15
    assert record["test"] is None
    empty = retention_record("SDFT", "tiny", TASKS, [])
    assert empty["average_accuracy"] is None
    assert set(empty["forgetting"].values()) == {None}


def test_the_record_defines_every_number_it_holds():
    undefined = {"method", "model", "tasks", "rows", "definitions"}
    record = retention_record("SDFT", "tiny", TASKS, rows())
    assert set(record) - undefined == set(DEFINITIONS) - {"accuracy"}


def test_the_table_lines_up_and_marks_what_was_not_measured():
    few = rows(2)
    few[1]["accuracy"]["b"] = None
    test = {"accuracy": {"a": 0.5, "b": 0.25, "c": 0.0}, "global_step": 3}
    assert format_matrix(TASKS, few, test).splitlines() == [
        "accuracy, %         a     b     c  average",
        "before training  10.0  20.0   0.0     10.0",
        "after a          80.0     -  10.0        -",
        "test rows        50.0  25.0   0.0     25.0",
    ]


def test_long_task_names_do_not_widen_the_table_without_end():
    tasks = ("a_task_whose_name_has_no_end_whatsoever", "b")
    table = format_matrix(tasks, [stage_row(tasks, 1, 0, {tasks[0]: 1.0, "b": 0.0})])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert max(map(len, lines)) < 80
    assert shortened(tasks[0], 18) in lines[0]


def test_shortened_text_keeps_both_ends_and_the_length_asked_for():
    assert shortened("exactly", 7) == "exactly"
    assert shortened("abcdefgh", 7) == "abc…fgh"
    assert shortened("abcdefgh", 6) == "abc…gh"
