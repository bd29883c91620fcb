"""Builds the report's section on the price of learning: tables and figure."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial

from matplotlib.axes import Axes

from sdft.evaluation.figures import COLOURS, FAINT, label_points
from sdft.evaluation.statistics import Estimate, pareto_front
from sdft.report.charts import MARKERS, plain_axes
from sdft.report.comparison import Comparison
from sdft.report.matched_learning import PairedDifference, best_learning, paired_difference
from sdft.report.panels import Chart, Panel
from sdft.report.tables import Cell, Table, plus_minus
from sdft.report.trade_off import TradeOff, trade_offs
from sdft.report.trajectory_rows import LEARNINGS

NOT_REACHED = "not reached"
CHOSE = "only seeds that chose a rate"


def matched_table(trade_off: TradeOff) -> Table:
    """A row per method: its rate, and its price at each target."""
    rows = []
    for method in trade_off.chosen:
        cells = [Cell(f"{method.choice.rate:g}"), Cell(method.choice.how)]
        most = best_learning(method.trajectories.values())
        cells.append(Cell(trade_off.learning.shown(most)))
        for target in trade_off.targets.values():
            prices = list(method.prices(target).values())
            cells.append(Cell(_price(prices, method.num_unmeasured(target))))
        rows.append((method.choice.label, cells))
    columns = ["learning rate", "chosen as", "most learned", *trade_off.targets]
    return Table(_corner(trade_off), columns, rows)


def _corner(trade_off: TradeOff) -> str:
    return f"{trade_off.price.name}, at equal {trade_off.learning.name}"


def _price(prices: Sequence[float | None], num_unmeasured: int) -> str:
    reached = Estimate.of(prices)
    if reached is None:
        return f"{NOT_REACHED} (0 of {len(prices)} seeds)"
    seeds = f"{reached.num_seeds} of {len(prices)} seeds"
    if num_unmeasured:
        seeds += f", {num_unmeasured} on the line from the start"
    return f"{reached.mean:.2f}{plus_minus(reached.half_width, 2)} ({seeds})"


def pair_table(trade_off: TradeOff) -> Table:
    """A row per pair of methods and target: the difference in price, paired by seed."""
    rows = []
    for one, other in itertools.combinations(trade_off.chosen, 2):
        for name, target in trade_off.targets.items():
            difference = paired_difference(one.prices(target), other.prices(target))
            fresh = one.choice.fresh and other.choice.fresh
            cells = list(_cells(difference)) if fresh else [Cell(CHOSE), *[Cell("")] * 3]
            names = f"{one.choice.label} minus {other.choice.label}"
            rows.append((f"{names} at {name}", cells))
    columns = ["difference", "95 % interval (bootstrap over seeds)", "p (sign flips)", "seeds"]
    return Table(f"difference in {_corner(trade_off)}", columns, rows)


def _cells(found: PairedDifference) -> Iterator[Cell]:
    if found.mean is None or found.p is None:
        yield from (Cell(NOT_REACHED), Cell(""), Cell(""))
    else:
        interval = "one seed" if found.low is None else f"{found.low:+.2f} to {found.high:+.2f}"
        yield from (Cell(f"{found.mean:+.2f}"), Cell(interval), Cell(f"{found.p:.2g}"))
    yield Cell(f"{found.num_pairs} of {found.num_seeds}")


def trade_off_chart(comparison: Comparison) -> Chart:
    """A panel per task and price: every point of every run, and the Pareto front."""
    panels = [
        Panel(
            textwrap.fill(f"{each.task}: {each.price.what}", 36),
            f"Accuracy on {each.task} against {each.price.name} along the runs of "
            + ", ".join(each.points),
            partial(_draw, trade_off=each),
        )
        for each in trade_offs(comparison)
        if each.learning is LEARNINGS[0]
    ]
    caption = (
        "What learning costs: a faint line is a run, its points are measurements inside the stage, "
        "all seeds and learning rates. Up and to the left is better; the grey line is the Pareto "
        "front of all points."
    )
    return Chart("trade_off", caption, panels)


def _draw(axes: Axes, trade_off: TradeOff) -> None:
    plain_axes(axes, trade_off.price.unit, f"accuracy on {trade_off.task}")
    names: list[tuple[str, tuple[float, float], str]] = []
    positions: list[tuple[float, float]] = []
    for index, (label, trajectories) in enumerate(trade_off.points.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        known: list[tuple[float, float]] = []
        for points in trajectories:
            here = [(each.price, each.learning) for each in points if each.price is not None]
            axes.plot([x for x, _ in here], [y for _, y in here], color=colour, alpha=0.35, lw=1)
            known += here
        if not known:
            continue
        axes.plot(*zip(*known, strict=True), color=colour, marker=marker, ms=4, ls="")
        names.append((label, max(known, key=lambda each: each[1]), colour))
        positions += known
    front = [positions[each] for each in pareto_front([(-x, y) for x, y in positions])]
    axes.plot(*zip(*reversed(front), strict=True), color=FAINT, lw=1.2, drawstyle="steps-post")
    left, right = axes.get_xlim()
    label_points(axes, names, at=right + 0.03 * (right - left))
