"""Mix the student's own completions with demonstrations in a batch.

Generalized knowledge distillation calls the fraction of on-policy data λ (Agarwal et al. 2024,
arXiv 2306.13649, algorithm 1). There each batch is randomly one or the other; here the rows of
every batch are divided, so that the fraction is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sdft.types import Rollout, TokenIds

_ROUNDING = 1e-9  # tolerance for the product of the fraction and a number of rows


def on_policy_rows(fraction: float, places: Iterable[int]) -> list[int]:
    """Choose the rows to sample, evenly spread: floor(fraction * n) of the first n rows of a run.

    Args:
        fraction: λ, from 0 to 1.
        places: For each row of a batch, its index in the run, counted over all steps and ranks.

    Returns:
        Indices into ``places``, in order.
    """

    def num_before(place: int) -> int:
        return math.floor(fraction * place + _ROUNDING)

    return [row for row, place in enumerate(places) if num_before(place + 1) > num_before(place)]


def beside_demonstrations(
    sampled: Rollout | None, rows: Sequence[int], demonstrations: Sequence[TokenIds]
) -> Rollout:
    """The completions of a batch: the samples for sampled rows, demonstrations for the others.

    Args:
        sampled: One completion for each of ``rows``; None if there are none.
        rows: The rows that were sampled.
        demonstrations: B token-id lists.

    Returns:
        B completions; those that were not sampled have no log-probabilities.
    """
    completions = [list(demonstration) for demonstration in demonstrations]
    logprobs: list[list[float]] = [[] for _ in completions]
    ended = [True] * len(completions)
    for place, row in enumerate(rows):
        assert sampled is not None
        completions[row] = list(sampled.completions[place])
        logprobs[row] = sampled.logprobs[place]
        ended[row] = sampled.ended[place]
    return Rollout(completions, logprobs, ended)
