"""What the runs of a comparison did not measure, in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sdft.evaluation.metrics import last_measured_stage
from sdft.report.groups import Comparison
from sdft.report.readings import capability, common_suites
from sdft.report.runs import Run

MOST_NAMES = 6
"""Runs that a sentence names before it counts the others."""

PARTS = {
    "test": ("accuracies on test rows", "the line of test rows needs"),
    "capabilities": (
        "prior capabilities after the last stage on shared suites (capabilities.json)",
        "figure 4 needs",
    ),
    "pass_at_k": ("pass@k (pass_at_k.json)", "its curves need"),
    "cost": ("costs (cost.json)", "the cost table needs"),
    "answers": ("answers at every stage (answers/stage-*.jsonl)", "the rollouts side by side need"),
}
"""Part of a run -> what it is, and what needs it."""


def absence(comparison: Comparison, part: str) -> str | None:
    """A sentence about the runs without a part; None if all have it."""
    has = _presence(comparison, part)
    without = [run.name for run in comparison.runs if not has(run)]
    what, need = PARTS[part]
    if not without:
        return None
    if len(without) == len(comparison.runs):
        return f"No run has {what}, which {need}."
    return f"{_names(without)} of {len(comparison.runs)} have no {what}, which {need}."


def missing(comparison: Comparison) -> list[str]:
    """Everything that is missing, a sentence each."""
    sentences = [absence(comparison, part) for part in PARTS]
    return [
        *_unfinished(comparison),
        *_without_interval(comparison),
        *(sentence for sentence in sentences if sentence),
    ]


def _presence(comparison: Comparison, part: str) -> Callable[[Run], bool]:
    if part != "capabilities":
        return lambda run: bool(getattr(run, part))
    suites = common_suites(comparison)
    return lambda run: capability(run, suites) is not None


def _unfinished(comparison: Comparison) -> list[str]:
    """Sentences about sequences under way, and about rows with holes."""
    sentences = []
    for run in comparison.runs:
        last = last_measured_stage(run.matrix)
        rows = 0 if last is None else last + 1
        holes = int(run.matrix[:rows].isnan().sum())
        if rows < len(run.matrix):
            sentences.append(
                f"{run.name} has measured {rows} of {len(run.matrix)} rows of its accuracy matrix: "
                "they are in the matrix, and its means over tasks are left out."
            )
        if holes:
            sentences.append(f"{run.name} has not measured {holes} of the cells in these rows.")
    return sentences


def _without_interval(comparison: Comparison) -> list[str]:
    single = [group.label for group in comparison.groups if len(group.runs) == 1]
    if not single:
        return []
    return [f"One seed has no interval: {', '.join(single)}. Intervals need at least two seeds."]


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    listed = f"{shown} and {more} more" if more > 0 else shown
    return f"{len(names)} ({listed})"
