"""Means over seeds with their 95 % intervals, and which methods no other one beats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: Of the seeds' values.
        half_width: Half of Student's 95 % interval for the mean; None for one seed.
        num_seeds: Values that went into it.
    """

    mean: float
    half_width: float | None
    num_seeds: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate | None:
        """The estimate from one value per seed; None where no seed has one.

        Args:
            values: None for a seed that did not measure it.
        """
        known = [value for value in values if value is not None and not math.isnan(value)]
        if not known:
            return None
        half = None
        if len(known) > 1:
            error = statistics.stdev(known) / math.sqrt(len(known))
            half = student_quantile(len(known) - 1) * error
        return cls(statistics.fmean(known), half, len(known))


def student_quantile(degrees: int, probability: float = CONFIDENCE) -> float:
    """The t for which Student's distribution lies within ±t with the given probability.

    Args:
        degrees: Degrees of freedom, at least 1.
        probability: Between 0 and 1.
    """
    low, high = 0.0, 1.0
    while probability_within(high, degrees) < probability:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        below = probability_within(middle, degrees) < probability
        low, high = (middle, high) if below else (low, middle)
    return high


def probability_within(t: float, degrees: int) -> float:
    """The probability that Student's distribution gives to ±t, in its closed form.

    For an integer number of degrees of freedom it is a finite sum of powers of a cosine
    (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(2 + odd, degrees + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power - 1) / power
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other one beats in one coordinate and equals in the other.

    Args:
        points: More is better in both coordinates.

    Returns:
        Ordered by the first coordinate; equal points are all on the front.
    """
    front = [
        index
        for index, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    return sorted(front, key=lambda index: (points[index][0], -points[index][1]))
