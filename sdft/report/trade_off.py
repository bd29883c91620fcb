"""Computes the price of learning in a comparison, by method and learning rate.

A method is all runs with the same settings except the learning rate. Every run with a trajectory
counts; the definitions are those of :mod:`sdft.report.matched_learning`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sdft.report.comparison import Comparison, difference_label
from sdft.report.load_runs import Run, TrajectoryRow
from sdft.report.matched_learning import (
    TARGET_SHARES,
    Point,
    best_learning,
    choose_rate,
    price_at,
)

RATE = "model.init_args.learning_rate"
CHOOSING_SHARE = 0.7
"""The fraction of the best learning at which a method's learning rate is chosen."""


@dataclass(frozen=True)
class Method:
    """All runs of one method that have a trajectory.

    Args:
        label: Its name, and what distinguishes it from others of that name.
        runs: Learning rate -> seed -> run.
    """

    label: str
    runs: Mapping[float, Mapping[int, Run]]

    def pilot_seeds(self) -> set[int]:
        """Seeds that ran every rate, by which to choose one; none if there is one rate."""
        if len(self.runs) < 2:
            return set()
        return set.intersection(*(set(seeds) for seeds in self.runs.values()))


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

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return f"{self.scale * value:.{0 if self.scale > 1 else 2}f} {self.unit}"


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
        name: Its name, with its unit.
        of: (rows of the stage so far, tasks before it) -> the price; None if not measured.
        needs_earlier: Whether it concerns tasks that were trained before.
    """

    name: str
    of: Callable[[Sequence[TrajectoryRow], Sequence[str]], float | None]
    needs_earlier: bool = False


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
    Price("drift on general prompts, nats per token", _drift),
    Price("forgetting of earlier tasks since the stage's start, points", _forgetting, True),
    Price(
        "rise of the NLL of earlier tasks' demonstrations since the stage's start, nats per token",
        _likelihood_lost,
        True,
    ),
)


@dataclass(frozen=True)
class ChosenMethod:
    """A method at the learning rate that was chosen for it.

    Args:
        label: The method's label.
        rate: The learning rate.
        how: The rule by which it was chosen, and the seeds.
        trajectories: Seed used for the comparison -> trajectory at that rate.
    """

    label: str
    rate: float
    how: str
    trajectories: Mapping[int, Sequence[Point]]

    def prices(self, target: float) -> dict[int, float | None]:
        """Seed -> price where the target was reached; None where it was not."""
        return {seed: price_at(each, target) for seed, each in self.trajectories.items()}


@dataclass(frozen=True)
class TradeOff:
    """One task and one price: all points, and methods at matched learning.

    Args:
        task: What was learned.
        learning: How learning is measured.
        price: How its cost is measured.
        points: Method -> all points of all its seeds and rates, by trajectory.
        best: Most learning: the highest mean over seeds of any method and rate.
        chosen: The methods at their rates.
    """

    task: str
    learning: Learning
    price: str
    points: Mapping[str, Sequence[Sequence[Point]]]
    best: float
    chosen: Sequence[ChosenMethod]

    @property
    def targets(self) -> dict[str, float]:
        """Name -> learning at which methods are compared; the last is what all runs reached."""
        named = {f"{100 * share:.0f} % of the best": share * self.best for share in TARGET_SHARES}
        highest = [
            max((point.learning for point in points), default=0.0)
            for method in self.chosen
            for points in method.trajectories.values()
        ]
        named["most that all runs reached"] = min(highest)
        shown = self.learning.shown
        return {f"{shown(value)} ({name})": value for name, value in named.items() if value > 0}


def trade_offs(comparison: Comparison) -> list[TradeOff]:
    """A trade-off for every task, price and measure of learning in the runs' trajectories."""
    methods = _methods(comparison)
    found = (
        _trade_off(methods, comparison.tasks[: stage + 1], learning, price)
        for stage in range(len(comparison.tasks))
        for price in PRICES
        for learning in LEARNINGS
        if stage or not price.needs_earlier
    )
    return [each for each in found if each is not None]


def _methods(comparison: Comparison) -> list[Method]:
    by_settings: dict[tuple[str, frozenset[tuple[str, str]]], list[Run]] = {}
    for run in comparison.runs:
        if run.trajectory and run.seed is not None and RATE in run.settings:
            settings = {key: value for key, value in run.settings.items() if key != RATE}
            key = run.method, frozenset(settings.items())
            by_settings.setdefault(key, []).append(run)
    firsts = [replace(runs[0], settings=dict(key[1])) for key, runs in by_settings.items()]
    methods = []
    for first, runs in zip(firsts, by_settings.values(), strict=True):
        by_rate: dict[float, dict[int, Run]] = {}
        for run in runs:
            assert run.seed is not None
            by_rate.setdefault(float(run.settings[RATE]), {})[run.seed] = run
        others = [each for each in firsts if each.method == first.method]
        methods.append(Method(difference_label(first, others), dict(sorted(by_rate.items()))))
    return methods


def _points(run: Run, tasks: Sequence[str], learning: Learning, price: Price) -> list[Point]:
    *earlier, task = tasks
    rows = [row for row in run.trajectory or () if row.task == task]
    points = []
    for place in range(len(rows)):
        so_far = rows[: place + 1]
        learned = learning.of(so_far, task)
        if learned is not None:
            points.append(Point(learned, price.of(so_far, earlier)))
    return points


def _trade_off(
    methods: Sequence[Method], tasks: Sequence[str], learning: Learning, price: Price
) -> TradeOff | None:
    by_method = [
        {
            rate: {seed: _points(run, tasks, learning, price) for seed, run in runs.items()}
            for rate, runs in method.runs.items()
        }
        for method in methods
    ]
    every_rate = [list(runs.values()) for rates in by_method for runs in rates.values()]
    best = max(map(best_learning, every_rate), default=0.0)
    measured = any(
        point.price is not None for runs in every_rate for points in runs for point in points
    )
    if best <= 0 or not measured:
        return None
    points = {
        method.label: [each for runs in rates.values() for each in runs.values()]
        for method, rates in zip(methods, by_method, strict=True)
    }
    chosen = [_chosen(*each, best) for each in zip(methods, by_method, strict=True)]
    return TradeOff(tasks[-1], learning, price.name, points, best, chosen)


def _chosen(
    method: Method, rates: Mapping[float, Mapping[int, Sequence[Point]]], best: float
) -> ChosenMethod:
    """The method's rate, and the seeds to compare on: other than those that chose it, if any."""
    if len(rates) == 1:
        [(rate, by_seed)] = rates.items()
        return ChosenMethod(method.label, rate, "the only one run", by_seed)
    pilots = method.pilot_seeds() or {seed for by_seed in rates.values() for seed in by_seed}
    choosing = {
        rate: [points for seed, points in by_seed.items() if seed in pilots]
        for rate, by_seed in rates.items()
    }
    rate = choose_rate(choosing, CHOOSING_SHARE * best)
    fresh = {seed: points for seed, points in rates[rate].items() if seed not in pilots}
    how = f"cheapest of {len(rates)} at {CHOOSING_SHARE:.0%} of the best, on seeds " + ", ".join(
        map(str, sorted(pilots))
    )
    if not fresh:
        how += ", and compared on them too"
    return ChosenMethod(method.label, rate, how, fresh or rates[rate])
