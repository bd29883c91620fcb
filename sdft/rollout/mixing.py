"""Rollouts of which a share is the student's own and the rest is the demonstrations.

Generalised knowledge distillation calls the share λ (Agarwal et al. 2024, arXiv 2306.13649,
algorithm 1). There every batch is one or the other, by the toss of a coin; here the rows of every
batch are divided, so that the share is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sdft.types import Rollout, TokenIds

_ROUNDING = 1e-9  # of a share times a count of rows


def on_policy_rows(fraction: float, places: Iterable[int]) -> list[int]:
    """Which rows are sampled, spread evenly: of the first n places of a run, floor(fraction n).

    Args:
        fraction: λ, from 0 to 1.
        places: For each row of a batch its place in the run, counted over all steps and ranks.

    Returns:
        Indices into ``places``, in order.
    """

    def num_before(place: int) -> int:
        return math.floor(fraction * place + _ROUNDING)

    return [row for row, place in enumerate(places) if num_before(place + 1) > num_before(place)]


def beside_demonstrations(
    sampled: Rollout | None, rows: Sequence[int], demonstrations: Sequence[TokenIds]
) -> Rollout:
    """A whole batch's completions: samples where there are some, else the demonstrations.

    Args:
        sampled: One completion for each of ``rows``; None for none.
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
