"""The numbers that a run is judged by; None where it did not measure them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, tensor

from sdft.evaluation.metrics import (
    accuracy_when_trained,
    average_accuracy,
    backward_transfer,
    forgetting_from_best,
    forgetting_from_trained,
    forward_transfer,
    last_measured_stage,
    learning_gain,
    normalised_gain,
)
from sdft.report.groups import Comparison, Group
from sdft.report.runs import Run
from sdft.report.statistics import Estimate

Reading = Callable[[Run], float | None]


def finished(run: Run) -> bool:
    """Whether the last stage was measured: only then do means over tasks compare with others."""
    return last_measured_stage(run.matrix) == len(run.tasks)


def at_the_end(read: Callable[[Tensor], Tensor]) -> Reading:
    """A reading of the accuracy matrix of finished runs."""
    return lambda run: known(read(run.matrix)) if finished(run) else None


def held_out_accuracy(run: Run, task: str) -> float | None:
    """Accuracy on a task's test rows."""
    return (run.test or {}).get(task)


def average_test_accuracy(run: Run) -> float | None:
    """Mean of it over the tasks."""
    return mean_share([held_out_accuracy(run, task) for task in run.tasks])


RETENTION: dict[str, Reading] = {
    "average accuracy": at_the_end(average_accuracy),
    "accuracy after its own stage": at_the_end(lambda matrix: accuracy_when_trained(matrix).mean()),
    "gain by its own stage": at_the_end(lambda matrix: learning_gain(matrix).mean()),
    "smallest gain by its own stage": at_the_end(lambda matrix: learning_gain(matrix).min()),
    "forgetting": at_the_end(lambda matrix: forgetting_from_trained(matrix).nanmean()),
    "forgetting from best": at_the_end(lambda matrix: forgetting_from_best(matrix).nanmean()),
    "backward transfer": at_the_end(backward_transfer),
    "forward transfer": at_the_end(forward_transfer),
    "average accuracy on test rows": average_test_accuracy,
}
"""Means over a run's tasks, as :mod:`sdft.evaluation.metrics` defines them."""


def cell(group: Group, stage: int, task: int) -> Estimate | None:
    """Mean of ``R[stage, task]`` over the group's seeds."""
    return group.mean(lambda run: known(run.matrix[stage, task]))


@dataclass(frozen=True, slots=True)
class GainScale:
    """The scale on which a task's accuracy is 0 at the base model and 1 at the best (figure 3).

    Args:
        task: The task's place in the sequence.
        base: Mean accuracy of all runs before training.
        best: Highest mean over seeds of any method at any stage.
    """

    task: int
    base: float
    best: float

    @classmethod
    def of(cls, comparison: Comparison, task: int) -> GainScale | None:
        """The scale of a task; None where no run has measured the base model."""
        base = Estimate.of(known(run.matrix[0, task]) for run in comparison.runs)
        stages = range(len(comparison.tasks) + 1)
        means = [cell(group, stage, task) for group in comparison.groups for stage in stages]
        best = max((each.mean for each in means if each), default=None)
        return None if base is None or best is None else cls(task, base.mean, best)

    def gain(self, group: Group, stage: int) -> Estimate | None:
        """Mean of a method's normalised gain over its seeds; None where no method gained."""
        base, best = tensor(self.base), tensor(self.best)
        return group.mean(
            lambda run: known(normalised_gain(run.matrix[stage, self.task], base, best))
        )


def common_suites(comparison: Comparison) -> list[str]:
    """The suites that every run with prior capabilities after its last stage has there."""
    ends = [row for run in comparison.runs if (row := _suites(run, len(run.tasks)))]
    return [suite for suite in (ends[0] if ends else ()) if all(suite in row for row in ends)]


def capability(run: Run, suites: list[str], stage: int | None = None) -> float | None:
    """Mean score on the suites after a number of stages, by default all of them."""
    row = _suites(run, len(run.tasks) if stage is None else stage)
    return mean_share([row.get(suite) for suite in suites])


def _suites(run: Run, stage: int) -> dict[str, float]:
    """The suites that were measured at one point of the sequence."""
    row = (run.capabilities or {}).get(stage, {})
    return {suite: value for suite, value in row.items() if value is not None}


def mean_share(values: list[float | None]) -> float | None:
    """The mean, or None if any value is missing."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def known(value: Tensor) -> float | None:
    """A scalar as a number; None for NaN."""
    number = value.item()
    return None if math.isnan(number) else number
