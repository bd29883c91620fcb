"""Means over seeds with their 95 % intervals, tests of a difference, and the Pareto front.

All functions take one number per seed. The intervals do not include the variation from another
sample of validation rows.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
NUM_RESAMPLES = 9_999
"""Resamples of a bootstrap, and sign patterns of a test with too many seeds to try them all."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: Mean of the seeds' values.
        half_width: Half of Student's 95 % interval for the mean; None for one seed, or if all
            seeds have the same value, since their variance is then unknown.
        num_seeds: Number of values in the mean.
    """

    mean: float
    half_width: float | None
    num_seeds: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate | None:
        """The estimate from one value per seed; None where no seed has one.

        Args:
            values: None for a seed that did not measure it, NaN where it is undefined.
        """
        known = known_values(values)
        if not known:
            return None
        half = None
        if len(known) > 1 and min(known) < max(known):
            quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(known) - 1)
            half = float(quantile * stats.sem(known))
        return cls(statistics.fmean(known), half, len(known))


def known_values(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers, without None and NaN."""
    return [value for value in values if value is not None and not math.isnan(value)]


def bootstrap_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """The 95 % percentile bootstrap interval of a mean; the same for the same values.

    Args:
        values: Values of independent units, such as differences by seed or by row. With few seeds
            the interval is too narrow, and Student's (:class:`Estimate`) is better.

    Returns:
        Both ends, or None for both if there are fewer than two values.
    """
    if len(values) < 2:
        return None, None
    found = stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        confidence_level=CONFIDENCE,
        method="percentile",
        n_resamples=NUM_RESAMPLES,
        rng=np.random.default_rng(0),
    )
    low, high = found.confidence_interval
    return float(low), float(high)


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the sign-flip test that paired differences are symmetric about 0.

    With n differences every one of the 2^n sign patterns is tried, as long as there are at most
    :data:`NUM_RESAMPLES` of them; so p is never below 2 / 2^n, which is 0.25 for three seeds.

    Args:
        differences: One per seed, method A minus method B; None is returned if there are none.
    """
    if len(differences) < 2:  # scipy asks for two
        return 1.0 if differences else None
    found = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        permutation_type="samples",
        n_resamples=NUM_RESAMPLES,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points for which no other point is at least as good in both coordinates.

    Args:
        points: Pairs of coordinates; larger is better in both.

    Returns:
        Ordered by the first coordinate; equal points are all on the front.
    """
    front = [
        index
        for index, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    ]
    return sorted(front, key=lambda index: (points[index][0], -points[index][1]))
