"""The results on prior capabilities in the form of ``capabilities.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from sdft.evaluation.capabilities.margins import MarginChange, margin_change
from sdft.evaluation.capabilities.suites import Suite

DEFINITIONS = {
    "score": "One metric of each suite, named under suites; the average is their plain mean.",
    "acc": "Share of rows whose right choice has the highest summed log-likelihood.",
    "acc_norm": "The same after dividing each choice's log-likelihood by its characters.",
    "prompt_level_strict_acc": "Share of prompts whose answer follows every instruction.",
    "margins": "Of each row, the right choice's log-likelihood minus that of the best other one, "
    "each per token, in nats.",
    "margin_change": "Margin minus that before training on the same row: mean over rows and its "
    "95 % bootstrap interval.",
    "pass@1": "Share of functions, written greedily, that pass their tests.",
}


class CapabilityRow(TypedDict):
    """The results at one point of the sequence.

    ``stage`` is the row of the accuracy matrix, ``after`` the task trained just before
    (None before any training).
    """

    stage: int
    after: str | None
    global_step: int
    scores: dict[str, float]
    average: float
    metrics: dict[str, dict[str, float]]
    margins: dict[str, list[float]]


def capability_row(
    tasks: Sequence[str],
    stage: int,
    global_step: int,
    suites: Sequence[Suite],
    metrics: Mapping[str, Mapping[str, float]],
    margins: Mapping[str, Sequence[float]],
) -> CapabilityRow:
    """Build one measured row.

    Args:
        tasks: The K tasks in the order they are trained.
        stage: Number of completed stages, 0 to K.
        global_step: Optimizer steps taken so far.
        suites: The suites that were measured.
        metrics: Suite name -> metric -> value.
        margins: Suite name -> margin of each row.
    """
    scores = {suite.name: metrics[suite.name][suite.score] for suite in suites}
    return {
        "stage": stage,
        "after": tasks[stage - 1] if stage else None,
        "global_step": global_step,
        "scores": scores,
        "average": round(sum(scores.values()) / len(scores), 6),
        "metrics": {name: dict(values) for name, values in metrics.items()},
        "margins": {name: list(values) for name, values in margins.items()},
    }


def _changes(row: CapabilityRow, rows: Sequence[CapabilityRow]) -> dict[str, MarginChange]:
    """The change of each suite's margins since before training, if those are known."""
    base = min(rows, key=lambda each: each["stage"]).get("margins", {})
    changes = {
        suite: margin_change(margins, base[suite])
        for suite, margins in row.get("margins", {}).items()
        if suite in base
    }
    return {suite: change for suite, change in changes.items() if change is not None}


def capability_record(
    suites: Sequence[Suite],
    source: str,
    num_rows: int | None,
    rows: Sequence[CapabilityRow],
) -> dict[str, Any]:
    """Build the content of ``capabilities.json``.

    Args:
        suites: The suites that are measured.
        source: Source of the suites' rows.
        num_rows: Number of rows read of each suite; None for all.
        rows: The rows measured so far.
    """
    return {
        "suites": {suite.name: {"score": suite.score} for suite in suites},
        "source": source,
        "num_rows": num_rows,
        "rows": [{**row, "margin_change": _changes(row, rows)} for row in rows],
        "definitions": DEFINITIONS,
    }
