"""Groups comparable runs, and computes the numbers that they are compared by."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from sdft.evaluation.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    last_measured_stage,
    learning_accuracy,
    learning_gain,
    normalised_gain,
)
from sdft.evaluation.statistics import Estimate
from sdft.report.load_runs import Run

ABSENT = "not in its config.yaml"
"""Stands for the value of an option that only other runs have."""

LONGEST_VALUE = 24
"""Characters of an option's value that a label may hold."""

MOST_NAMED = 3
"""Options that a label may name."""

Measure = Callable[[Run], float | None]
"""A number of a run: None where it was not measured, NaN where it is undefined."""


@dataclass(frozen=True)
class Group:
    """The runs of one method with the same settings, which differ only in the seed.

    Args:
        label: The method's name; where several settings share it, with the option that tells them
            apart, or else a number.
        runs: At least one.
        settings: The options that differ from those of its method's other groups.
    """

    label: str
    runs: tuple[Run, ...]
    settings: dict[str, str]

    def values(self, measure: Measure) -> list[float | None]:
        """One value per run."""
        return [measure(run) for run in self.runs]

    def mean(self, measure: Measure) -> Estimate | None:
        """Mean over the runs that have a number; None if no run has."""
        return Estimate.of(self.values(measure))


@dataclass(frozen=True)
class Comparison:
    """Groups that trained the same model on the same sequence of tasks."""

    model: str
    tasks: tuple[str, ...]
    groups: tuple[Group, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, group by group."""
        return tuple(run for group in self.groups for run in group.runs)


def compare(runs: Iterable[Run]) -> list[Comparison]:
    """Sort runs into comparisons and groups, in the given order.

    Raises:
        ValueError: Two runs are the same experiment with the same seed.
    """
    comparable: dict[tuple[str, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        comparable.setdefault((run.model, run.tasks), []).append(run)
    return [
        Comparison(model, tasks, tuple(_groups(members)))
        for (model, tasks), members in comparable.items()
    ]


def _groups(runs: Sequence[Run]) -> list[Group]:
    by_settings: dict[tuple[str, frozenset[tuple[str, str]]], list[Run]] = {}
    for run in runs:
        by_settings.setdefault((run.method, frozenset(run.settings.items())), []).append(run)
    groups = []
    for (method, _), members in by_settings.items():
        _refuse_twice(members)
        others = [each[0] for each in by_settings.values() if each[0].method == method]
        label = difference_label(members[0], others)
        groups.append(Group(label, tuple(members), _differences(members[0], others)))
    return groups


def difference_label(run: Run, others: Sequence[Run]) -> str:
    """The method's name, with what distinguishes the run from others of its method.

    That is the least number of options, at most three, whose values differ between all of them.
    """
    if len(others) == 1:
        return run.method
    names = list(_differences(run, others))
    for number in range(1, MOST_NAMED + 1):
        for some in itertools.combinations(names, number):
            values = {tuple(_shown(other, name) for name in some) for other in others}
            longest = max(len(text) for texts in values for text in texts)
            if len(values) == len(others) and longest <= LONGEST_VALUE:
                return f"{run.method} ({', '.join(_shown_all(run, some))})"
    return f"{run.method} #{others.index(run) + 1}"


def _shown(run: Run, name: str) -> str:
    """An option's value in a label; empty where the run does not have the option."""
    value = run.settings.get(name, "")
    return "" if value == str(None) else value


def _shown_all(run: Run, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        short = re.sub(r"^(model\.init_args|model|data|trainer)\.", "", name)
        yield f"{short} {_shown(run, name)}" if _shown(run, name) else f"no {short}"


def _differences(run: Run, others: Sequence[Run]) -> dict[str, str]:
    """The run's options that are not the same in all of the others."""
    names = dict.fromkeys(name for other in others for name in other.settings)
    return {
        name: run.settings.get(name, ABSENT)
        for name in names
        if len({other.settings.get(name, ABSENT) for other in others}) > 1
    }


def _refuse_twice(runs: Sequence[Run]) -> None:
    """Refuse a repeated experiment: counted twice, it would make intervals too narrow."""
    seen: dict[int | None, Run] = {}
    for run in runs:
        twin = seen.setdefault(run.seed, run)
        if twin is not run:
            raise ValueError(
                f"{twin.name} and {run.name} are the same experiment with the same seed, "
                f"{run.seed}; give one of them"
            )


def at_the_end(read: Callable[[Tensor], Tensor]) -> Measure:
    """A number of the accuracy matrix of runs whose last stage was measured.

    Only then are means over tasks comparable with those of other runs.
    """

    def measure(run: Run) -> float | None:
        if last_measured_stage(run.matrix) != len(run.tasks):
            return None
        number = read(run.matrix).item()
        return None if math.isnan(number) and run.matrix.isnan().any() else number

    return measure


def held_out_accuracy(run: Run, task: str) -> float | None:
    """Accuracy on a task's test rows."""
    return (run.test or {}).get(task)


RETENTION: dict[str, Measure] = {
    "average accuracy": at_the_end(average_accuracy),
    "learning accuracy": at_the_end(lambda matrix: learning_accuracy(matrix).mean()),
    "learning gain": at_the_end(lambda matrix: learning_gain(matrix).mean()),
    "smallest learning gain": at_the_end(lambda matrix: learning_gain(matrix).min()),
    "forgetting": at_the_end(lambda matrix: forgetting(matrix).nanmean()),
    "backward transfer": at_the_end(backward_transfer),
    "forward transfer": at_the_end(forward_transfer),
    "average accuracy on test rows": lambda run: mean_share(
        [held_out_accuracy(run, task) for task in run.tasks]
    ),
}
"""Means over a run's tasks, as :mod:`sdft.evaluation.metrics` defines them."""


def accuracy_at(stage: int, task: int) -> Measure:
    """``R[stage, task]``."""
    return lambda run: known(run.matrix[stage, task])


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
        base = Estimate.of(map(accuracy_at(0, task), comparison.runs))
        means = [
            group.mean(accuracy_at(stage, task))
            for group in comparison.groups
            for stage in range(len(comparison.tasks) + 1)
        ]
        best = max((each.mean for each in means if each), default=None)
        return None if base is None or best is None else cls(task, base.mean, best)

    def gain_at(self, stage: int) -> Measure:
        """Normalised gain after a number of stages; undefined where no method gained."""

        def measure(run: Run) -> float | None:
            accuracy = run.matrix[stage, self.task]
            base, best = accuracy.new_tensor(self.base), accuracy.new_tensor(self.best)
            gain = normalised_gain(accuracy, base, best)
            return None if accuracy.isnan() else gain.item()

        return measure


def capability_before(run: Run, suites: list[str]) -> float | None:
    """Mean score on the suites before the run's training."""
    return capability(run, suites, run.first_stage)


def common_suites(comparison: Comparison) -> list[str]:
    """The suites that all runs share, of those with prior capabilities after the last stage."""
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
