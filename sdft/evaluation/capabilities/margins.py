"""Margins of the right choice: a more sensitive measure of prior capabilities than accuracy.

Accuracy on a few hundred rows changes only if the preferred choice of a row changes. The margin of
a row changes with every change of the model: it is the log-likelihood of the right choice minus
that of the best other one, each per token, in nats. Comparing with the base model row by row
removes most of the variance between rows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from sdft.evaluation.statistics import bootstrap_interval


class MarginChange(TypedDict):
    """The mean change of a suite's margins from the base model's on the same rows."""

    mean: float
    low: float | None
    high: float | None


def choice_margin(target: int, likelihoods: Sequence[float], num_tokens: Sequence[int]) -> float:
    """The log-likelihood of the right choice minus that of the best other one, in nats per token.

    Args:
        target: Index of the right choice.
        likelihoods: Summed log-likelihood of each choice, at least two.
        num_tokens: Tokens of each choice.
    """
    per_token = [total / count for total, count in zip(likelihoods, num_tokens, strict=True)]
    others = [value for choice, value in enumerate(per_token) if choice != target]
    return per_token[target] - max(others)


def suite_margins(
    samples: Sequence[Mapping[str, Any]], num_tokens: Callable[[str], int]
) -> list[float]:
    """The margin of every row, in order; none for a suite that is not a choice between texts.

    Args:
        samples: Samples logged by the harness.
        num_tokens: Counts the tokens of a text.
    """
    margins = []
    for row in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        target = row["doc"].get("gold", row["target"])  # WinoGrande's target is a text
        if isinstance(target, int) and len(row["filtered_resps"]) > 1:
            scores = [float(score) for score, _ in row["filtered_resps"]]
            counts = [max(num_tokens(text), 1) for _, text in row["arguments"]]
            margins.append(round(choice_margin(target, scores, counts), 6))
    return margins


def margin_change(margins: Sequence[float], base: Sequence[float]) -> MarginChange | None:
    """Compare a suite's margins with the base model's.

    Args:
        margins: The margin of each row.
        base: The base model's margins of the same rows.

    Returns:
        The mean change and its interval; None if there are no margins.
    """
    differences = [own - theirs for own, theirs in zip(margins, base, strict=True)]
    if not differences:
        return None
    low, high = bootstrap_interval(differences)
    return {"mean": statistics.fmean(differences), "low": low, "high": high}
