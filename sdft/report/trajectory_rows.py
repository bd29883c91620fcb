"""Reads ``trajectory.jsonl``, and what its rows say of learning and of its price."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdft.runs.file_values import amount, member, of_kind, shares, text
from sdft.runs.jsonl import read_records


@dataclass(frozen=True, slots=True)
class TrajectoryRow:
    """What one line of ``trajectory.jsonl`` measured inside a stage."""

    task: str
    step: int
    accuracy: Mapping[str, float | None]
    demonstration_nll: Mapping[str, float | None]
    general_drift: float | None


def read_trajectory(path: Path) -> tuple[TrajectoryRow, ...]:
    """The rows of a run's ``trajectory.jsonl``, in order.

    Raises:
        ValueError: A row lacks a member or has a wrong one; names file and line.
    """
    return tuple(
        TrajectoryRow(
            task=text(member(record, "task", str, f"{where}: "), f"{where}: 'task'"),
            step=member(record, "step", int, f"{where}: "),
            accuracy=shares(member(record, "accuracy", dict, f"{where}: "), where),
            demonstration_nll={
                text(name, where): amount(value, f"{where}: {name!r}")
                for name, value in of_kind(
                    record.get("demonstration_nll", {}), dict, f"{where}: 'demonstration_nll'"
                ).items()
            },
            general_drift=amount(record.get("general_drift"), f"{where}: 'general_drift'"),
        )
        for where, record in read_records(path)
    )


@dataclass(frozen=True)
class Learning:
    """A measure of how much of a task was learned.

    Args:
        name: As in "at equal accuracy".
        unit: Unit of the displayed values.
        scale: Factor from a value to the displayed one.
        of: (rows of the stage so far, task) -> the learning; None if not measured.
    """

    name: str
    unit: str
    scale: float
    of: Callable[[Sequence[TrajectoryRow], str], float | None]

    @property
    def is_share(self) -> bool:
        """Whether the learning is a share of rows, as an accuracy is."""
        return self.scale > 1

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.scale * value:.{0 if self.is_share else 2}f} {self.unit}"


def _accuracy(rows: Sequence[TrajectoryRow], task: str) -> float | None:
    return rows[-1].accuracy.get(task)


def _likelihood(rows: Sequence[TrajectoryRow], task: str) -> float | None:
    before, now = (row.demonstration_nll.get(task) for row in (rows[0], rows[-1]))
    return None if before is None or now is None else before - now


LEARNINGS = (
    Learning("accuracy", "%", 100, _accuracy),
    Learning("gain in log-likelihood of the demonstrations", "nats a token", 1, _likelihood),
)


@dataclass(frozen=True)
class Price:
    """A price of learning a task.

    Args:
        what: What is paid.
        unit: In what unit.
        of: (rows of the stage so far, tasks before it) -> the price; None if not measured.
        needs_earlier: Whether it concerns tasks that were trained before, and is counted from the
            start of the stage.
    """

    what: str
    unit: str
    of: Callable[[Sequence[TrajectoryRow], Sequence[str]], float | None]
    needs_earlier: bool = False

    @property
    def name(self) -> str:
        """What is paid, since when, and in what unit."""
        since = " since the stage's start" if self.needs_earlier else ""
        return f"{self.what}{since}, {self.unit}"


def _drift(rows: Sequence[TrajectoryRow], _: Sequence[str]) -> float | None:
    return rows[-1].general_drift


def _forgetting(rows: Sequence[TrajectoryRow], earlier: Sequence[str]) -> float | None:
    rise = _mean_rise(rows[0].accuracy, rows[-1].accuracy, earlier)
    return None if rise is None else -100 * rise


def _likelihood_lost(rows: Sequence[TrajectoryRow], earlier: Sequence[str]) -> float | None:
    return _mean_rise(rows[0].demonstration_nll, rows[-1].demonstration_nll, earlier)


def _mean_rise(
    before: Mapping[str, float | None], after: Mapping[str, float | None], tasks: Sequence[str]
) -> float | None:
    """Mean over tasks of the rise of a measure; None if a task was not measured."""
    pairs = [(before.get(task), after.get(task)) for task in tasks]
    rises = [now - then for then, now in pairs if then is not None and now is not None]
    return statistics.fmean(rises) if rises and len(rises) == len(tasks) else None


PRICES = (
    Price("drift on general prompts", "nats per token", _drift),
    Price("forgetting of earlier tasks", "points", _forgetting, True),
    Price(
        "rise of the NLL of earlier tasks' demonstrations",
        "nats per token",
        _likelihood_lost,
        True,
    ),
)
