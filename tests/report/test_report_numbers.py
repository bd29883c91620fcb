import math
import random
from dataclasses import replace

import pytest

from sdft.evaluation.statistics import Estimate, bootstrap_interval, pareto_front, sign_flip_p
from sdft.report import compare, read_run
from sdft.report.charts import gain_chart
from sdft.report.comparison import RETENTION, GainScale, accuracy_at
from sdft.report.page import missing
from sdft.report.tables import cost_columns, gain_table, percent, retention_table, scaled
from tests.report_runs import MATRIX, write_run


def test_an_interval_equals_the_one_worked_by_hand():
    # Mean 0.5; deviations -0.1, 0, 0.1: standard deviation 0.1; 4.303 * 0.1 / sqrt(3).
    estimate = Estimate.of([0.4, 0.5, 0.6])
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.half_width == pytest.approx(0.24841, abs=1e-4)


def test_one_seed_has_no_interval_and_none_has_no_mean():
    assert Estimate.of([0.3]) == Estimate(0.3, None, 1)
    assert Estimate.of([None, math.nan]) is None


def test_equal_seeds_have_no_interval_of_width_zero():
    assert Estimate.of([0.2, None, 0.2]) == Estimate(0.2, None, 2)


def test_a_bootstrap_of_two_values_reaches_both_and_repeats():
    # A quarter of the resamples of (0, 1) holds 0 alone, a quarter holds 1 alone.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)
    draw = random.Random(0)
    values = [draw.gauss(3.0, 1.0) for _ in range(400)]
    low, high = bootstrap_interval(values)
    assert (low, high) == bootstrap_interval(values)
    half = Estimate.of(values).half_width
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)
    assert bootstrap_interval([1.0]) == (None, None)


def test_a_sign_flip_test_counts_the_patterns_that_are_as_far_from_zero():
    # Of the 8 sums of ±1 ±2 ±3, two are as far from 0 as 6, and four as far as 4.
    assert sign_flip_p([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert sign_flip_p([-1.0, 2.0, 3.0]) == pytest.approx(4 / 8)
    assert sign_flip_p([1.0, -1.0]) == 1.0
    assert sign_flip_p([2.0]) == 1.0
    assert sign_flip_p([]) is None


def test_no_point_of_the_front_is_beaten_and_every_other_one_is():
    draw = random.Random(0)
    points = [(draw.randint(0, 9), draw.randint(0, 9)) for _ in range(60)]
    front = pareto_front(points)
    kept = [points[index] for index in front]
    assert kept == sorted(kept, key=lambda point: (point[0], -point[1]))
    for index, (x, y) in enumerate(points):
        beaten = any(a >= x and b >= y and (a > x or b > y) for a, b in points)
        assert beaten != (index in front)


def runs(tmp_path, *options):
    return [
        read_run(write_run(tmp_path / str(place), **each)) for place, each in enumerate(options)
    ]


def test_runs_of_a_method_are_one_group_whatever_their_seed_and_folder(tmp_path):
    found = compare(runs(tmp_path, {"seed": 1}, {"method": "SFT"}, {"seed": 2}))
    assert [(each.label, len(each.runs)) for each in found[0].groups] == [("SDFT", 2), ("SFT", 1)]
    assert found[0].groups[0].settings == {}


def test_other_settings_are_another_group_and_say_in_what(tmp_path):
    (found,) = compare(runs(tmp_path, {}, {"learning_rate": 0.01}, {"method": "SFT"}))
    labels = ["SDFT (learning_rate 0.0001)", "SDFT (learning_rate 0.01)", "SFT"]
    assert [each.label for each in found.groups] == labels
    assert found.groups[1].settings == {"model.init_args.learning_rate": "0.01"}


@pytest.mark.parametrize("teacher", ["base", "longer than a label may be"])
def test_groups_that_no_single_option_tells_apart_have_several_or_a_number(teacher, tmp_path):
    rates = ({}, {"learning_rate": 0.01}, {"learning_rate": 0.01, "teacher": teacher})
    (found,) = compare(runs(tmp_path, *rates))
    named = [
        "SDFT (learning_rate 0.0001, teacher ema)",
        "SDFT (learning_rate 0.01, teacher ema)",
        "SDFT (learning_rate 0.01, teacher base)",
    ]
    numbered = ["SDFT #1", "SDFT #2", "SDFT #3"]
    expected = named if teacher == "base" else numbered
    assert [each.label for each in found.groups] == expected


def test_normalised_gain_is_one_at_the_best_mean_of_any_method(tmp_path):
    better = ((0.0, 0.1), (0.4, 0.1), (0.4, 0.5))
    methods = ({"seed": 1}, {"seed": 2}, {"method": "SFT", "matrix": better})
    (found,) = compare(runs(tmp_path, *methods))
    sdft, sft = found.groups
    scale = GainScale.of(found, 0)
    assert (scale.base, scale.best) == pytest.approx((0.0, 0.8))
    assert sdft.mean(scale.gain_at(1)).mean == pytest.approx(1.0)
    assert sdft.mean(scale.gain_at(2)).mean == pytest.approx(0.75)
    assert sft.mean(scale.gain_at(2)).mean == pytest.approx(0.5)
    assert sft.mean(GainScale.of(found, 1).gain_at(2)).mean == pytest.approx(0.5)
    cells = dict(gain_table(found).rows)
    assert [each.text for each in cells["SFT"]] == ["0.50", "0.50"]


def test_no_gain_is_normalised_where_no_method_learned(tmp_path):
    (found,) = compare(runs(tmp_path, {"matrix": ((0.5, 0.1), (0.4, 0.1), (0.3, 0.9))}))
    assert found.groups[0].mean(GainScale.of(found, 0).gain_at(2)) is None
    assert [each.text for each in gain_table(found).rows[0][1]] == ["undefined", "1.00"]
    assert [panel.title for panel in gain_chart(found).panels] == ["two"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.00272 - 4e-7, 0.00272, 0.00272 + 4e-7], "0.00272 ± 0.00001"),
        ([1234.0, 1236.0, 1235.0], "1,235 ± 3"),
        ([12.0], "12"),
        ([12.25], "12.2"),
        ([-0.5, -0.5], "-0.500"),
        ([0.0, 0.0], "0"),
        ([0.5, None, 0.5], "0.500 (2 of 3 seeds)"),
        ([None, None], "not measured"),
        ([None, math.nan], "undefined"),
    ],
)
def test_a_mean_and_its_interval_have_the_same_decimals(values, text):
    assert scaled(values).text == text


def test_an_interval_in_percent_is_never_shown_as_zero():
    assert percent([0.6, 0.60001]).text == "60.0 ± 0.1"
    assert percent([0.6, 0.6]).text == "60.0"
    assert percent([0.4, 0.5, 0.6]).text == "50.0 ± 24.9"


def test_what_one_task_cannot_show_is_undefined_and_what_was_not_run_is_not_measured(tmp_path):
    single = {"tasks": ("one",), "matrix": ((0.0,), (0.9,))}
    (found,) = compare(runs(tmp_path, single))
    shown = dict(zip(RETENTION, retention_table(found).rows[0][1], strict=True))
    texts = {name: cell.text for name, cell in shown.items()}
    assert texts["forgetting"] == texts["backward transfer"] == "undefined"
    assert texts["learning accuracy"] == "90.0"
    assert texts["average accuracy on test rows"] == "not measured"
    (holed,) = compare(runs(tmp_path / "holed", {"matrix": ((0, 0), (None, 0.1), (0.6, 0.9))}))
    shown = dict(zip(RETENTION, retention_table(holed).rows[0][1], strict=True))
    assert shown["backward transfer"].text == "not measured"


def test_replay_is_not_the_sft_that_times_are_compared_with(tmp_path):
    (found,) = compare(
        [
            replace(run, settings={"data.replay_fraction": fraction}, cost={"seconds": seconds})
            for run, fraction, seconds in zip(
                runs(tmp_path, {"method": "SFT"}, {"method": "SFT", "seed": 2}),
                ("0.0", "0.25"),
                (50.0, 75.0),
                strict=True,
            )
        ]
    )
    ratio = cost_columns(found)["time / SFT"]
    assert [ratio(run) for run in found.runs] == [1.0, 1.5]


def test_other_sequences_are_not_compared(tmp_path):
    found = compare(runs(tmp_path, {}, {"tasks": ("two", "one")}))
    assert [each.tasks for each in found] == [("one", "two"), ("two", "one")]


def test_the_same_experiment_twice_is_refused(tmp_path):
    twice = runs(tmp_path, {"seed": 3}, {"seed": 3})
    with pytest.raises(ValueError, match=r"0 and .*1 are the same experiment .* same seed, 3"):
        compare(twice)


def test_means_over_seeds_are_those_worked_by_hand(tmp_path):
    other = ((0.0, 0.1), (0.6, 0.1), (0.6, 0.7))
    (found,) = compare(runs(tmp_path, {"seed": 1}, {"seed": 2, "matrix": other}))
    (group,) = found.groups
    means = {name: group.mean(read) for name, read in RETENTION.items()}
    assert group.mean(accuracy_at(2, 1)).mean == pytest.approx(0.8)
    assert means["average accuracy"].mean == pytest.approx((0.75 + 0.65) / 2)
    assert means["forgetting"].mean == pytest.approx((0.2 + 0.0) / 2)
    assert means["backward transfer"].mean == pytest.approx(-(0.2 + 0.0) / 2)
    assert means["learning accuracy"].mean == pytest.approx(((0.8 + 0.9) / 2 + (0.6 + 0.7) / 2) / 2)
    assert means["learning gain"].mean == pytest.approx((0.8 + 0.6) / 2)
    assert means["smallest learning gain"].mean == pytest.approx((0.8 + 0.6) / 2)
    assert means["average accuracy on test rows"] is None


def test_an_unfinished_run_is_in_the_matrix_but_in_no_mean_over_tasks(tmp_path):
    (found,) = compare(runs(tmp_path, {"seed": 1}, {"seed": 2, "matrix": MATRIX[:2]}))
    (group,) = found.groups
    assert group.mean(accuracy_at(1, 0)).num_seeds == 2
    assert group.mean(accuracy_at(2, 0)).num_seeds == 1
    assert group.mean(RETENTION["average accuracy"]) == Estimate(0.75, None, 1)
    assert any("has measured 2 of 3 rows" in sentence for sentence in missing(found))
