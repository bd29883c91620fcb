"""The figures of a comparison, panel by panel.

A panel is drawn alone for the page, where panels flow into as many columns as the screen has room
for, and together with the others for the figure's files. Points and lines are named beside them;
colours are those of :mod:`sdft.figures`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sdft.figures import COLOURS, FAINT, INK, draw_curves, label_points
from sdft.report.groups import Comparison, Group
from sdft.report.intervals import Estimate, pareto_front
from sdft.report.readings import capability, cell, common_suites, new_task_accuracy

PANEL_WIDTH, PANEL_HEIGHT = 4.8, 3.7
NAME_HEIGHT = 0.2
"""Inches that a name at the edge of a panel needs."""
COLUMNS = 3
GRID = "#E6E6E6"
MARKERS = "osD^vPX*"
TEXT_IN_SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "sdft"}


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: Above the panel.
        description: What it shows, for who cannot see it.
        draw: Draws it.
        height: In inches.
    """

    title: str
    description: str
    draw: Callable[[Axes], None]
    height: float = PANEL_HEIGHT


@dataclass(frozen=True)
class Chart:
    """A figure: the name of its files, its caption and its panels, none if it cannot be drawn."""

    name: str
    caption: str
    panels: Sequence[Panel]


def retention_chart(comparison: Comparison) -> Chart:
    """A panel per method, a line per task over the stages (figure 3)."""
    panels = [
        Panel(
            group.label,
            f"{group.label}: accuracy on every task before training and after each stage; "
            "the numbers are those of the accuracy matrix",
            partial(_draw_retention, group=group, tasks=comparison.tasks),
        )
        for group in comparison.groups
    ]
    caption = (
        "Accuracy on each task over the stages (the paper's figure 3). Dashed until the task's own "
        "stage, where the large marker stands; bars are 95 % intervals over seeds."
    )
    return Chart("retention", caption, panels)


def capability_chart(comparison: Comparison) -> Chart:
    """New-task accuracy against prior capability with the Pareto front (figure 4)."""
    suites = common_suites(comparison)
    points = []
    for index, group in enumerate(comparison.groups):
        across = group.mean(lambda run: capability(run, suites))
        upward = group.mean(new_task_accuracy)
        if across and upward:
            points.append(Point(group.label, across, upward, index))
    caption = (
        "Mean accuracy over the trained tasks against mean accuracy over "
        f"{', '.join(suites)}, both after the last stage (the paper's figure 4). Up and to the "
        "right is better; no method lies beyond the line of the Pareto front. Bars are 95 % "
        "intervals over seeds."
    )
    before = Estimate.of(capability(run, suites, stage=0) for run in comparison.runs)
    panel = Panel(
        "New tasks against prior capabilities",
        "; ".join(f"{each.name}: {each.described()}" for each in points),
        partial(_draw_capability, points=points, before=before),
        _height(len(points) + 1),
    )
    return Chart("capabilities", caption, [panel] if points else [])


def pass_at_k_chart(comparison: Comparison) -> Chart:
    """A panel per task, a line per method over k."""
    panels = []
    for task in comparison.tasks:
        lines = [(group.label, _pass_at_k(group, task)) for group in comparison.groups]
        known = [(index, *line) for index, line in enumerate(lines) if line[1]]
        if known:
            description = f"pass@k on {task} of {', '.join(name for _, name, _ in known)}"
            draw = partial(_draw_pass_at_k, lines=known)
            panels.append(Panel(task, description, draw, _height(len(known))))
    caption = (
        "Chance that at least one of k sampled completions is right. Bars are 95 % intervals over "
        "seeds."
    )
    return Chart("pass_at_k", caption, panels)


def panel_svg(panel: Panel) -> str:
    """One panel as the text of an SVG image."""
    return _svg(_figure([panel]))


def files_of(chart: Chart) -> dict[str, bytes]:
    """The chart as the content of its files, by suffix."""
    figure = _figure(chart.panels)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    return {".svg": _svg(figure).encode(), ".png": png.getvalue()}


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context(TEXT_IN_SVG):
        figure.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None})
    return buffer.getvalue()


def _figure(panels: Sequence[Panel]) -> Figure:
    """The panels in rows of a few."""
    num_columns = min(COLUMNS, len(panels))
    num_rows = math.ceil(len(panels) / num_columns)
    height = max(panel.height for panel in panels)
    size = (PANEL_WIDTH * num_columns, height * num_rows)
    figure = Figure(figsize=size, layout="constrained")
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(num_rows, num_columns, place)
        panel.draw(axes)
        axes.set_title(panel.title, loc="left", color=INK, fontsize=11, parse_math=False)
    return figure


def _height(num_names: int) -> float:
    return max(PANEL_HEIGHT, 1 + NAME_HEIGHT * num_names)


@dataclass(frozen=True)
class Point:
    """A method in the plane of prior capability and new-task accuracy."""

    name: str
    across: Estimate
    upward: Estimate
    index: int

    def described(self) -> str:
        """Its position in words."""
        return f"new tasks {self.upward.mean:.1%}, prior capabilities {self.across.mean:.1%}"


def _draw_retention(axes: Axes, group: Group, tasks: Sequence[str]) -> None:
    estimates = [
        [cell(group, stage, task) for task in range(len(tasks))] for stage in range(len(tasks) + 1)
    ]
    means = [[each.mean if each else math.nan for each in row] for row in estimates]
    draw_curves(axes, tasks, torch.tensor(means, dtype=torch.float64))
    for task in range(len(tasks)):
        for stage, row in enumerate(estimates):
            _interval_bar(axes, stage, row[task], COLOURS[task % len(COLOURS)])


def _draw_capability(axes: Axes, points: Sequence[Point], before: Estimate | None) -> None:
    positions = [(each.across.mean, each.upward.mean) for each in points]
    front = [positions[index] for index in pareto_front(positions)]
    axes.plot(*zip(*front, strict=True), drawstyle="steps-pre", color=FAINT, lw=1.2, zorder=1)
    names = []
    for point, (x, y) in zip(points, positions, strict=True):
        colour = COLOURS[point.index % len(COLOURS)]
        marker = MARKERS[point.index % len(MARKERS)]
        axes.errorbar(
            x, y, xerr=point.across.half_width, yerr=point.upward.half_width, color=colour,
            marker=marker, ms=7, lw=1, capsize=2, clip_on=False,
        )  # fmt: skip
        names.append((point.name, (x, y), colour))
    if before:
        axes.axvline(before.mean, color=FAINT, lw=1, ls=":")
        axes.annotate(
            "before training", (before.mean, 0.02), xytext=(-3, 0), textcoords="offset points",
            rotation=90, ha="right", fontsize=8.5, color=INK,
        )  # fmt: skip
    _plain_axes(axes, "prior capabilities", "new tasks")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.autoscale_view(scaley=False)
    left, right = axes.get_xlim()
    label_points(axes, names, at=right + 0.03 * (right - left))


def _pass_at_k(group: Group, task: str) -> dict[int, Estimate]:
    """Mean pass@k on a task by k, in order, as far as any run has it."""
    lines = [run.pass_at_k.get(task, {}) for run in group.runs if run.pass_at_k]
    every_k = sorted({k for line in lines for k in line})
    estimates = {k: Estimate.of(line.get(k) for line in lines) for k in every_k}
    return {k: estimate for k, estimate in estimates.items() if estimate}


def _draw_pass_at_k(axes: Axes, lines: Sequence[tuple[int, str, dict[int, Estimate]]]) -> None:
    axes.set_xscale("log", base=2)
    names = []
    for index, name, by_k in lines:
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        heights = [each.mean for each in by_k.values()]
        axes.plot(list(by_k), heights, color=colour, marker=marker, ms=5, lw=1.8, clip_on=False)
        for k, estimate in by_k.items():
            _interval_bar(axes, k, estimate, colour)
        names.append((name, (max(by_k), heights[-1]), colour))
    ticks = sorted({k for _, _, by_k in lines for k in by_k})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    _plain_axes(axes, "k", "pass@k")
    label_points(axes, names, at=1.15 * max(ticks))


def _interval_bar(axes: Axes, x: float, estimate: Estimate | None, colour: str) -> None:
    """The 95 % interval as a bar, cut at 0 and 1; nothing where there is none."""
    if estimate and estimate.half_width:
        low = max(estimate.mean - estimate.half_width, 0)
        high = min(estimate.mean + estimate.half_width, 1)
        axes.plot([x, x], [low, high], color=colour, lw=1.2, alpha=0.7, clip_on=False, marker="_")


def _plain_axes(axes: Axes, across: str, upward: str) -> None:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(upward, color=INK)
    axes.tick_params(colors=INK, color=FAINT)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
