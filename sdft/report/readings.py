"""The numbers that a run is judged by; None where it did not measure them."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from sdft.metrics import (
    accuracy_when_trained,
    average_accuracy,
    average_accuracy_of_trained,
    backward_transfer,
    forgetting_from_best,
    forgetting_from_trained,
    forward_transfer,
    last_measured_stage,
    learning_gain,
)
from sdft.report.groups import Comparison, Group
from sdft.report.intervals import Estimate
from sdft.report.runs import Run

Reading = Callable[[Run], float | None]


def average_test_accuracy(run: Run) -> float | None:
    """Mean over the tasks of the accuracy on test rows."""
    return mean_share([run.test.get(task) for task in run.tasks]) if run.test else None


def new_task_accuracy(run: Run) -> float | None:
    """Mean accuracy over the tasks trained so far, in the last measured row."""
    return known(average_accuracy_of_trained(run.matrix))


RETENTION: dict[str, Reading] = {
    "average accuracy": lambda run: known(average_accuracy(run.matrix)),
    "accuracy after its own stage": lambda run: known(accuracy_when_trained(run.matrix).mean()),
    "gain by its own stage": lambda run: known(learning_gain(run.matrix).mean()),
    "smallest gain by its own stage": lambda run: known(learning_gain(run.matrix).min()),
    "forgetting": lambda run: known(forgetting_from_trained(run.matrix).nanmean()),
    "forgetting from best": lambda run: known(forgetting_from_best(run.matrix).nanmean()),
    "backward transfer": lambda run: known(backward_transfer(run.matrix)),
    "forward transfer": lambda run: known(forward_transfer(run.matrix)),
    "average accuracy on test rows": average_test_accuracy,
}
"""Means over a run's tasks, as :mod:`sdft.metrics` defines them."""


def cell(group: Group, stage: int, task: int) -> Estimate | None:
    """Mean of ``R[stage, task]`` over the group's seeds."""
    return group.mean(lambda run: known(run.matrix[stage, task]))


def common_suites(comparison: Comparison) -> list[str]:
    """The suites of prior capabilities that every run with any has in its last measured row."""
    last = [_last_capabilities(run) for run in comparison.runs if run.capabilities]
    return [suite for suite in (last[0] if last else ()) if all(suite in row for row in last)]


def capability(run: Run, suites: list[str], stage: int | None = None) -> float | None:
    """Mean accuracy on the suites after a stage, or in the last measured row."""
    if not run.capabilities or not suites:
        return None
    row = _last_capabilities(run) if stage is None else run.capabilities.get(stage, {})
    return mean_share([row.get(suite) for suite in suites])


def _last_capabilities(run: Run) -> dict[str, float]:
    """Suites measured after the last measured stage; empty where nothing was."""
    row = (run.capabilities or {}).get(last_measured_stage(run.matrix) or 0, {})
    return {suite: value for suite, value in row.items() if value is not None}


def mean_share(values: list[float | None]) -> float | None:
    """The mean, or None if any value is missing."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def known(value: Tensor) -> float | None:
    """A scalar as a number; None for NaN."""
    number = value.item()
    return None if math.isnan(number) else number
