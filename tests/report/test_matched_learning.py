import pytest

from sdft.report.matched_learning import (
    ChosenRate,
    Point,
    best_learning,
    choose_rate,
    paired_difference,
    passed_unmeasured,
    price_at,
)

RISING = [Point(0.0, 0.0), Point(0.2, 0.4), Point(0.6, 0.8), Point(0.9, 1.4)]


def test_price_is_read_off_the_line_through_the_crossing():
    assert price_at(RISING, 0.4) == pytest.approx(0.6)  # halfway from 0.2 to 0.6
    assert price_at(RISING, 0.7) == pytest.approx(0.8 + 0.6 / 3)


def test_price_at_a_measured_learning_is_the_measured_price():
    assert price_at(RISING, 0.6) == 0.8
    assert price_at(RISING, 0.0) == 0.0


def test_a_target_that_is_never_reached_has_no_price():
    assert price_at(RISING, 0.91) is None
    assert price_at([], 0.5) is None


def test_the_first_crossing_counts_where_learning_goes_up_and_down():
    trajectory = [Point(0.0, 0.0), Point(0.8, 1.0), Point(0.3, 2.0), Point(0.9, 9.0)]
    assert price_at(trajectory, 0.4) == pytest.approx(0.5)
    assert price_at(trajectory, 0.85) == pytest.approx(2.0 + 7.0 * 0.55 / 0.6)


def test_a_target_within_the_first_line_is_told_apart():
    assert passed_unmeasured(RISING, 0.1)
    assert not any(passed_unmeasured(RISING, target) for target in (0.0, 0.2, 0.4, 1.0))
    assert not passed_unmeasured(RISING[:1], 0.1)


def test_a_price_may_fall_while_learning_rises():
    assert price_at([Point(0.0, 1.0), Point(1.0, 0.0)], 0.25) == pytest.approx(0.75)


def test_a_first_measurement_above_the_target_gives_its_own_price():
    assert price_at([Point(0.7, 0.3), Point(0.9, 0.5)], 0.5) == 0.3


def test_a_price_that_was_not_measured_at_the_crossing_is_none():
    assert price_at([Point(0.0, None), Point(1.0, 1.0)], 0.5) is None
    assert price_at([Point(0.0, None), Point(1.0, 1.0)], 1.0) == 1.0


def test_best_learning_is_the_mean_of_each_runs_highest():
    falling = [Point(0.5, 0.0), Point(0.1, 0.0)]
    assert best_learning([RISING, falling]) == pytest.approx(0.7)
    assert best_learning([]) == 0.0


def test_the_rate_that_reaches_the_target_most_cheaply_is_chosen():
    cheap = [Point(0.0, 0.0), Point(0.6, 0.1)]
    never = [Point(0.0, 0.0), Point(0.4, 0.0)]
    assert choose_rate({1e-5: [never], 2e-5: [cheap], 5e-5: [RISING]}, 0.5) == ChosenRate(
        2e-5, True
    )
    # One of two seeds is not most of them.
    assert choose_rate({2e-5: [cheap, never], 5e-5: [RISING, RISING]}, 0.5).rate == 5e-5


def test_without_a_rate_that_reaches_the_target_the_one_that_learns_most_is_chosen():
    pilots = {1e-5: [[Point(0.1, 0.0)]], 2e-5: [[Point(0.3, 9.0)]]}
    assert choose_rate(pilots, 0.5) == ChosenRate(2e-5, False)
    with pytest.raises(ValueError, match="no learning rates"):
        choose_rate({}, 0.5)


def test_differences_are_taken_within_seeds_that_both_reached():
    one = {1: 0.5, 2: 0.7, 3: None, 4: 1.0}
    other = {1: 0.4, 2: 0.4, 3: 0.2, 5: 9.0}
    found = paired_difference(one, other)
    assert found.mean == pytest.approx(0.2)
    assert (found.num_pairs, found.num_seeds, found.not_reached) == (2, 3, (1, 0))
    assert found.p == 0.5
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.3)


def test_methods_without_a_common_seed_have_no_difference():
    found = paired_difference({1: 0.5}, {2: 0.5})
    assert (found.mean, found.low, found.high, found.p) == (None, None, None, None)
    assert (found.num_pairs, found.num_seeds) == (0, 0)
