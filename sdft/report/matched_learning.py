"""Compares the price of learning between methods at points of equal learning.

A trajectory is a series of measurements in one run: after every few optimizer steps, how much of
the new task it had learned and what that had cost so far (drift, forgetting, a change of prior
capabilities). Methods and learning rates learn at different speeds, so prices after the same
number of steps, or at the end, are not comparable. Here they are compared at the same learning.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sdft.evaluation.statistics import bootstrap_interval, sign_flip_p

TARGET_SHARES = (0.5, 0.7, 0.9)
"""Targets of learning, as fractions of the best that any method reached."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement of a trajectory.

    Args:
        learning: How much was learned so far, such as the accuracy on the new task.
        price: What it cost; higher is worse. None where it was not measured.
    """

    learning: float
    price: float | None


def price_at(trajectory: Sequence[Point], target: float) -> float | None:
    """The price at which a run first reached a target, interpolated linearly.

    The price is interpolated between the first measurement at or above the target and the one
    before it. What happens afterwards does not count, so a run that falls back below the target has
    still reached it.

    Args:
        trajectory: In order of time.
        target: Of learning.

    Returns:
        None if the run never reached the target, or a price there was not measured.
    """
    before: Point | None = None
    for point in trajectory:
        if point.learning >= target:
            return _between(before, point, target)
        before = point
    return None


def passed_unmeasured(trajectory: Sequence[Point], target: float) -> bool:
    """Whether a run passed a target between its first two measurements.

    It was then measured nowhere near the target, and :func:`price_at` is a line from the start.
    """
    return len(trajectory) > 1 and trajectory[0].learning < target < trajectory[1].learning


def _between(before: Point | None, after: Point, target: float) -> float | None:
    if before is None or after.learning == target:
        return after.price
    if before.price is None or after.price is None:
        return None
    share = (target - before.learning) / (after.learning - before.learning)
    return before.price + share * (after.price - before.price)


def best_learning(trajectories: Iterable[Sequence[Point]]) -> float:
    """Mean over runs of the most that each had learned at any time; 0 without runs."""
    best = [max((point.learning for point in each), default=0.0) for each in trajectories]
    return statistics.fmean(best) if best else 0.0


@dataclass(frozen=True, slots=True)
class ChosenRate:
    """A method's learning rate, and whether it reached the target at which it was chosen."""

    rate: float
    reached: bool


def choose_rate(pilots: Mapping[float, Sequence[Sequence[Point]]], target: float) -> ChosenRate:
    """Choose a method's learning rate by a rule fixed before the runs that are compared.

    Of the rates at which most pilot runs reach the target, the one with the least mean price
    there; if there is no such rate, the one with the most learning.

    Args:
        pilots: Rate -> trajectories of the pilot runs, one for each seed.
        target: Of learning.

    Raises:
        ValueError: There are no rates.
    """
    if not pilots:
        raise ValueError("no learning rates to choose from")
    prices: dict[float, float] = {}
    for rate, trajectories in pilots.items():
        reached = [price for each in trajectories if (price := price_at(each, target)) is not None]
        if 2 * len(reached) > len(trajectories):
            prices[rate] = statistics.fmean(reached)
    if prices:
        return ChosenRate(min(prices, key=lambda rate: (prices[rate], rate)), True)
    return ChosenRate(max(pilots, key=lambda rate: (best_learning(pilots[rate]), -rate)), False)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """One method's price minus another's at the same learning, paired by seed.

    Args:
        mean: Over the seeds where both reached the target; None if there are none.
        low: Lower end of the 95 % percentile bootstrap interval of the mean, over seeds; None for
            fewer than two seeds. With few seeds such an interval is too narrow.
        high: Its upper end.
        p: Two-sided p-value of the exact sign-flip test: the fraction of the 2^n ways to swap the
            two methods within seeds that give a mean at least as far from 0. None for no seeds.
            With n seeds it cannot be less than 2 / 2^n.
        num_pairs: The number of pairs, n.
        num_seeds: Seeds that both methods were run with.
        not_reached: In how many of these the first and the second method missed the target.
    """

    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    num_pairs: int
    num_seeds: int
    not_reached: tuple[int, int]


def paired_difference(
    one: Mapping[int, float | None], other: Mapping[int, float | None]
) -> PairedDifference:
    """Compare two methods' prices by seed.

    Args:
        one: Seed -> price at the target, None where it was not reached.
        other: The same for the other method; only seeds of both count.
    """
    seeds = sorted(one.keys() & other.keys())
    pairs = [(one[seed], other[seed]) for seed in seeds]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    missing = (sum(a is None for a, _ in pairs), sum(b is None for _, b in pairs))
    low, high = bootstrap_interval(known) if len(known) > 1 else (None, None)
    return PairedDifference(
        mean=statistics.fmean(known) if known else None,
        low=low,
        high=high,
        p=sign_flip_p(known) if known else None,
        num_pairs=len(known),
        num_seeds=len(seeds),
        not_reached=missing,
    )
