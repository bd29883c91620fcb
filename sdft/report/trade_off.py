"""Computes the price of learning in a comparison, by method and learning rate.

A method is all runs with the same settings except the learning rate. Every run with a trajectory
counts; the definitions are those of :mod:`sdft.report.matched_learning`. A method has one learning
rate for each task, whatever price is compared: the one with the least drift at a fraction of the
best accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sdft.report.comparison import Comparison, difference_label
from sdft.report.load_runs import Run
from sdft.report.matched_learning import (
    TARGET_SHARES,
    Point,
    best_learning,
    choose_rate,
    passed_unmeasured,
    price_at,
)
from sdft.report.trajectory_rows import LEARNINGS, PRICES, Learning, Price

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
class Choice:
    """A method's learning rate for a task, and the seeds to compare it on.

    Args:
        label: The method's label.
        rate: The learning rate.
        how: The rule by which it was chosen, and the seeds.
        runs: Seed -> run at that rate, of the seeds to compare on.
        fresh: Whether these are other seeds than those that chose the rate.
    """

    label: str
    rate: float
    how: str
    runs: Mapping[int, Run]
    fresh: bool


@dataclass(frozen=True)
class ChosenMethod:
    """The trajectories of a method at its learning rate.

    Args:
        choice: The rate, and how it was chosen.
        trajectories: Seed used for the comparison -> trajectory at that rate.
    """

    choice: Choice
    trajectories: Mapping[int, Sequence[Point]]

    def prices(self, target: float) -> dict[int, float | None]:
        """Seed -> price where the target was reached; None where it was not."""
        return {seed: price_at(each, target) for seed, each in self.trajectories.items()}

    def num_unmeasured(self, target: float) -> int:
        """Number of seeds that passed the target before they were measured again."""
        return sum(passed_unmeasured(each, target) for each in self.trajectories.values())


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
    price: Price
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
    found: list[TradeOff | None] = []
    for stage in range(len(comparison.tasks) if methods else 0):
        tasks = comparison.tasks[: stage + 1]
        choices = _choices(methods, tasks)
        found += [
            _trade_off(methods, choices, tasks, learning, price)
            for price in PRICES
            for learning in LEARNINGS
            if stage or not price.needs_earlier
        ]
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


ByRate = Mapping[float, Mapping[int, Sequence[Point]]]


def _by_rate(method: Method, tasks: Sequence[str], learning: Learning, price: Price) -> ByRate:
    """Learning rate -> seed -> points."""
    return {
        rate: {seed: _points(run, tasks, learning, price) for seed, run in runs.items()}
        for rate, runs in method.runs.items()
    }


def _best(methods: Sequence[ByRate]) -> float:
    """The highest mean over seeds that any method learned at any rate."""
    every_rate = [runs.values() for by_rate in methods for runs in by_rate.values()]
    return max(map(best_learning, every_rate), default=0.0)


def _trade_off(
    methods: Sequence[Method],
    choices: Sequence[Choice],
    tasks: Sequence[str],
    learning: Learning,
    price: Price,
) -> TradeOff | None:
    by_method = [_by_rate(method, tasks, learning, price) for method in methods]
    best = _best(by_method)
    points = {
        method.label: [each for runs in rates.values() for each in runs.values()]
        for method, rates in zip(methods, by_method, strict=True)
    }
    every = (point for of in points.values() for each in of for point in each)
    if best <= 0 or all(point.price is None for point in every):
        return None
    chosen = [
        ChosenMethod(choice, {seed: rates[choice.rate][seed] for seed in choice.runs})
        for choice, rates in zip(choices, by_method, strict=True)
    ]
    return TradeOff(tasks[-1], learning, price, points, best, chosen)


def _choices(methods: Sequence[Method], tasks: Sequence[str]) -> list[Choice]:
    """Every method's rate: by drift at equal accuracy, or likelihood where no run has any."""
    drift = PRICES[0]
    for learning in LEARNINGS:
        by_method = [_by_rate(method, tasks, learning, drift) for method in methods]
        if (best := _best(by_method)) > 0:
            break
    return [_choice(*each, best, learning) for each in zip(methods, by_method, strict=True)]


def _choice(method: Method, rates: ByRate, best: float, learning: Learning) -> Choice:
    if len(rates) == 1:
        [(rate, runs)] = method.runs.items()
        return Choice(method.label, rate, "the only one run", runs, True)
    pilots = method.pilot_seeds() or {seed for by_seed in rates.values() for seed in by_seed}
    choosing = {
        rate: [points for seed, points in by_seed.items() if seed in pilots]
        for rate, by_seed in rates.items()
    }
    found = choose_rate(choosing, CHOOSING_SHARE * best)
    target = f"{CHOOSING_SHARE:.0%} of the best {learning.name}"
    rule = f"least drift at {target}" if found.reached else f"most learned: none reached {target}"
    seeds, them = ("seed", "it") if len(pilots) == 1 else ("seeds", "them")
    how = f"{rule}, of {len(rates)} rates on {seeds} {', '.join(map(str, sorted(pilots)))}"
    runs = method.runs[found.rate]
    fresh = {seed: run for seed, run in runs.items() if seed not in pilots}
    if not fresh:
        how += f", and shown on {them} too"
    return Choice(method.label, found.rate, how, fresh or runs, bool(fresh))
