"""Runs by what they have in common: comparable ones, then one method over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sdft.report.runs import Run
from sdft.report.statistics import Estimate

ABSENT = "not in its config.yaml"
"""Stands for the value of an option that only other runs have."""

LONGEST_VALUE = 24
"""Characters of an option's value that a label may hold."""


@dataclass(frozen=True)
class Group:
    """The runs of one method with the same settings: they differ in the seed alone.

    Args:
        label: The method's name; where several settings share it, with the option that tells them
            apart, or else a number.
        runs: At least one.
        settings: The options in which it differs from other groups of its method.
    """

    label: str
    runs: tuple[Run, ...]
    settings: dict[str, str]

    def mean(self, read: Callable[[Run], float | None]) -> Estimate | None:
        """Mean over the runs that have a number; None where none has it."""
        return Estimate.of(map(read, self.runs))


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
    """Sort runs into comparisons and groups, in the order they are given.

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
        label = _label(members[0], others)
        groups.append(Group(label, tuple(members), _differences(members[0], others)))
    return groups


def _label(run: Run, others: Sequence[Run]) -> str:
    """The method's name, and what tells the run from others of its method: a run per setting."""
    if len(others) == 1:
        return run.method
    for name, value in _differences(run, others).items():
        values = {other.settings.get(name, ABSENT) for other in others}
        if len(values) == len(others) and max(map(len, values)) <= LONGEST_VALUE:
            return f"{run.method} ({name.rpartition('.')[2]} {value})"
    return f"{run.method} #{others.index(run) + 1}"


def _differences(run: Run, others: Sequence[Run]) -> dict[str, str]:
    """The run's options that are not the same in all of the others."""
    names = dict.fromkeys(name for other in others for name in other.settings)
    return {
        name: run.settings.get(name, ABSENT)
        for name in names
        if len({other.settings.get(name) for other in others}) > 1
    }


def _refuse_twice(runs: Sequence[Run]) -> None:
    """One experiment counted twice would make an interval too small."""
    seen: dict[int | None, Run] = {}
    for run in runs:
        twin = seen.setdefault(run.seed, run)
        if twin is not run:
            raise ValueError(
                f"{twin.name} and {run.name} are the same experiment with the same seed, "
                f"{run.seed}; give one of them"
            )
