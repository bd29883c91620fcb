"""Compares the change of prior capabilities between methods at equal learning.

Capabilities are measured at the two ends of a stage, not within it, so the change at a target of
learning is read off the straight line between the ends: an assumption, which matters less the
nearer the target is to what the run had learned at its end. The change is that of the margin
(:mod:`sdft.evaluation.capabilities.margins`) from the model before the run, row by row, so that
rows, of which there are hundreds, and not only seeds give the interval. A model that only grows
less sure gains on rows that it had wrong and loses on those that it had right, hence both apart.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence

from sdft.evaluation.statistics import bootstrap_interval, sign_flip_p
from sdft.report.comparison import Comparison
from sdft.report.load_runs import Run
from sdft.report.tables import Cell, Table
from sdft.report.trade_off import Choice, TradeOff
from sdft.report.trajectory_rows import PRICES, Learning

NOT_REACHED = "not reached at the end"
COLUMNS = [
    "change",
    "95 % interval (bootstrap over rows)",
    "p (sign flips over seeds)",
    "on rows right before",
    "on rows wrong before",
    "seeds",
]

Rows = Sequence[float]
"""The change of every row's margin, in nats per token; negative is worse."""


def change_at(run: Run, stage: int, learning: Learning, target: float) -> Rows | None:
    """The change of each row's margin since before the run, at a target of learning in a stage.

    Args:
        run: With trajectory and margins.
        stage: Index of the task that is learned.
        learning: How learning is measured.
        target: Of learning.

    Returns:
        One value per row of the suites that were measured each time; None if the run had not
        learned as much at the end of the stage, or if something was not measured.
    """
    rows = [row for row in run.trajectory or () if row.task == run.tasks[stage]]
    if not rows:
        return None
    task = run.tasks[stage]
    start, end = learning.of(rows[:1], task), learning.of(rows, task)
    changes = [_change(run, each) for each in (stage, stage + 1)]
    before, after = changes
    if start is None or end is None or before is None or after is None or end < target:
        return None
    share = 1.0 if end <= start else max(0.0, (target - start) / (end - start))
    return [a + share * (b - a) for a, b in zip(before, after, strict=True)]


def _change(run: Run, stage: int) -> Rows | None:
    """Margins after some stages minus those before the run, over all suites; None if unknown."""
    margins = run.margins or {}
    base, now = margins.get(run.first_stage), margins.get(stage)
    if not base or now is None or any(len(now.get(s, ())) != len(base[s]) for s in base):
        return None
    pairs = (pair for suite in base for pair in zip(now[suite], base[suite], strict=True))
    return [own - theirs for own, theirs in pairs]


def prior_tables(comparison: Comparison, trade_offs: Sequence[TradeOff]) -> list[Table]:
    """A table per task for which runs have capabilities: each method, and each pair of methods.

    Args:
        comparison: The runs.
        trade_offs: Of the comparison.
    """
    tables = []
    for each in trade_offs:
        if each.price is not PRICES[0] or not each.learning.is_share:
            continue
        stage = comparison.tasks.index(each.task)
        rows = [row for name in each.targets.items() for row in _rows(each, stage, *name)]
        if any(cells[0].text != NOT_REACHED for _, cells in rows):
            corner = "margin on prior capabilities, nats per token, since before the run, at equal "
            tables.append(Table(corner + each.learning.name, COLUMNS, rows))
    return tables


def _rows(
    trade_off: TradeOff, stage: int, name: str, target: float
) -> list[tuple[str, Sequence[Cell]]]:
    found = {
        method.choice.label: _by_seed(method.choice, stage, trade_off.learning, target)
        for method in trade_off.chosen
    }
    fresh = {method.choice.label: method.choice.fresh for method in trade_off.chosen}
    right = {
        method.choice.label: {seed: _right(run) for seed, run in method.choice.runs.items()}
        for method in trade_off.chosen
    }
    rows: list[tuple[str, Sequence[Cell]]] = [
        (f"{label} at {name}", _cells(of, right[label])) for label, of in found.items()
    ]
    for one, other in itertools.combinations(found, 2):
        if fresh[one] and fresh[other]:
            differences = _differences(found[one], found[other])
            cells = _cells(differences, right[one], paired=True)
            rows.append((f"{one} minus {other} at {name}", cells))
    return rows


def _by_seed(
    choice: Choice, stage: int, learning: Learning, target: float
) -> dict[int, Rows | None]:
    return {seed: change_at(run, stage, learning, target) for seed, run in choice.runs.items()}


def _right(run: Run) -> Sequence[bool]:
    """Of every row, whether the model before the run had it right."""
    base = (run.margins or {}).get(run.first_stage) or {}
    return [margin > 0 for margins in base.values() for margin in margins]


def _differences(
    one: Mapping[int, Rows | None], other: Mapping[int, Rows | None]
) -> dict[int, Rows | None]:
    """Row by row, for the seeds of both; None where one did not reach the target."""
    differences: dict[int, Rows | None] = {}
    for seed in sorted(one.keys() & other.keys()):
        a, b = one[seed], other[seed]
        if a is None or b is None or len(a) != len(b):
            differences[seed] = None
        else:
            differences[seed] = [x - y for x, y in zip(a, b, strict=True)]
    return differences


def _cells(
    by_seed: Mapping[int, Rows | None],
    right: Mapping[int, Sequence[bool]],
    *,
    paired: bool = False,
) -> list[Cell]:
    """Mean over seeds, then rows: the interval is over rows, p over seeds."""
    of_seeds = {seed: rows for seed, rows in by_seed.items() if rows is not None}
    known = list(of_seeds.values())
    count = Cell(f"{len(known)} of {len(by_seed)}")
    if not known:
        return [Cell(NOT_REACHED), *[Cell("")] * 4, count]
    means = [statistics.fmean(column) for column in zip(*known, strict=True)]
    low, high = bootstrap_interval(means)
    interval = "one row" if low is None else f"{low:+.3f} to {high:+.3f}"
    p = sign_flip_p([statistics.fmean(rows) for rows in known]) if paired else None
    shown = "" if p is None else f"{p:.2g}"
    changes = [
        (was, change)
        for seed, rows in of_seeds.items()
        for was, change in zip(right[seed], rows, strict=True)
    ]
    apart = [[change for was, change in changes if was is which] for which in (True, False)]
    parts = [Cell(f"{statistics.fmean(part):+.3f}" if part else "no such row") for part in apart]
    return [Cell(f"{statistics.fmean(means):+.3f}"), Cell(interval), Cell(shown), *parts, count]
