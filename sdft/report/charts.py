"""Draws the four figures of a comparison.

Points and lines are labelled directly; colours are those of :mod:`sdft.evaluation.figures`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from sdft.evaluation.figures import COLOURS, FAINT, INK, draw_curves, label_points, name_stages
from sdft.evaluation.statistics import Estimate, pareto_front
from sdft.report.comparison import (
    RETENTION,
    Comparison,
    GainScale,
    Group,
    Measure,
    accuracy_at,
    capability,
    capability_before,
    common_suites,
)
from sdft.report.panels import GRID, PANEL_HEIGHT, Chart, Panel

NAME_HEIGHT = 0.2
"""Inches that a label at the edge of a panel needs."""
MARKERS = "osD^vPX*"


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
        "Accuracy on each task over the stages (the paper's figure 3). Dashed until the task was "
        "trained, with a large marker right after; bars are 95 % intervals over seeds."
    )
    return Chart("retention", caption, panels)


def gain_chart(comparison: Comparison) -> Chart:
    """A panel per task, a line per method: normalised gain over the stages (figure 3)."""
    panels = []
    for place, task in enumerate(comparison.tasks):
        scale = GainScale.of(comparison, place)
        stages = range(len(comparison.tasks) + 1)
        lines = [
            Line(
                index,
                group.label,
                {k: each for k in stages if (each := group.mean(scale.gain_at(k)))},
            )
            for index, group in enumerate(comparison.groups)
            if scale
        ]
        if any(line.estimates for line in lines):
            description = f"Normalised gain on {task} of {', '.join(each.name for each in lines)}"
            draw = partial(_draw_gain, lines=lines, tasks=comparison.tasks, task=place)
            panels.append(Panel(task, description, draw, _height(len(lines))))
    caption = (
        "Normalised gain over the stages (the paper's figure 3): 0 is the base model, 1 the best "
        "mean any method reached on the task. The vertical line stands right after training on "
        "the task; bars are 95 % intervals over seeds."
    )
    return Chart("gain", caption, panels)


def capability_chart(comparison: Comparison) -> Chart:
    """New-task accuracy against prior capability with the Pareto front (figure 4)."""
    suites = common_suites(comparison)
    points = []
    for index, group in enumerate(comparison.groups):
        across = group.mean(lambda run: capability(run, suites))
        upward = group.mean(RETENTION["average accuracy"])
        if across and upward:
            points.append(Point(group.label, across, upward, index))
    caption = (
        "Average accuracy on the tasks against the mean score on "
        f"{', '.join(suites)}, both after the last stage (the paper's figure 4). Up and to the "
        "right is better; no method lies beyond the line of the Pareto front. Bars are 95 % "
        "intervals over seeds."
    )
    before = Estimate.of(capability_before(run, suites) for run in comparison.runs)
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
        lines = [
            Line(index, group.label, _pass_at_k(group, task))
            for index, group in enumerate(comparison.groups)
        ]
        known = [line for line in lines if line.estimates]
        if known:
            description = f"pass@k on {task} of {', '.join(line.name for line in known)}"
            draw = partial(_draw_pass_at_k, lines=known)
            panels.append(Panel(task, description, draw, _height(len(known))))
    caption = (
        "Chance that at least one of k sampled completions is correct. Bars are 95 % intervals "
        "over seeds."
    )
    return Chart("pass_at_k", caption, panels)


def _height(num_names: int) -> float:
    return max(PANEL_HEIGHT, 1 + NAME_HEIGHT * num_names)


@dataclass(frozen=True)
class Line:
    """A method's line: its index among the methods, its name, and the values at each x."""

    index: int
    name: str
    estimates: dict[int, Estimate]

    @property
    def colour(self) -> str:
        """The method's colour."""
        return COLOURS[self.index % len(COLOURS)]

    def draw(self, axes: Axes) -> None:
        """Draw points, the line between them, and their intervals."""
        marker = MARKERS[self.index % len(MARKERS)]
        heights = [each.mean for each in self.estimates.values()]
        axes.plot(
            list(self.estimates), heights,
            color=self.colour, marker=marker, ms=5, lw=1.8, clip_on=False,
        )  # fmt: skip
        for x, estimate in self.estimates.items():
            _interval_bar(axes, x, estimate, self.colour)

    def label(self) -> tuple[str, tuple[float, float], str]:
        """Its name, its last point and its colour."""
        last = max(self.estimates)
        return self.name, (last, self.estimates[last].mean), self.colour


@dataclass(frozen=True)
class Point:
    """A method's point: prior capability across, new-task accuracy upward."""

    name: str
    across: Estimate
    upward: Estimate
    index: int

    def described(self) -> str:
        """Its position in words."""
        return f"new tasks {self.upward.mean:.1%}, prior capabilities {self.across.mean:.1%}"


def _draw_retention(axes: Axes, group: Group, tasks: Sequence[str]) -> None:
    estimates = [
        [group.mean(accuracy_at(stage, task)) for task in range(len(tasks))]
        for stage in range(len(tasks) + 1)
    ]
    means = [[each.mean if each else math.nan for each in row] for row in estimates]
    draw_curves(axes, tasks, torch.tensor(means, dtype=torch.float64))
    for task in range(len(tasks)):
        for stage, row in enumerate(estimates):
            _interval_bar(axes, stage, row[task], COLOURS[task % len(COLOURS)])


def _draw_capability(axes: Axes, points: Sequence[Point], before: Estimate | None) -> None:
    positions = [(each.across.mean, each.upward.mean) for each in points]
    names = []
    for point, (x, y) in zip(points, positions, strict=True):
        colour = COLOURS[point.index % len(COLOURS)]
        marker = MARKERS[point.index % len(MARKERS)]
        axes.errorbar(
            x, y, xerr=point.across.half_width, yerr=point.upward.half_width,
            fmt="none", color=colour, lw=1, capsize=2,
        )  # fmt: skip
        axes.plot([x], [y], color=colour, marker=marker, ms=7, clip_on=False)
        names.append((point.name, (x, y), colour))
    if before:
        axes.axvline(before.mean, color=FAINT, lw=1, ls=":")
        axes.annotate(
            "before training", (before.mean, 0.02), xytext=(-3, 0), textcoords="offset points",
            rotation=90, ha="right", fontsize=8.5, color=INK,
        )  # fmt: skip
    plain_axes(axes, "prior capabilities", "new tasks")
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.autoscale_view(scaley=False)
    left, right = axes.get_xlim()
    front = [positions[index] for index in pareto_front(positions)]
    corners = [(left, front[0][1]), *front, (front[-1][0], 0)]
    axes.plot(*zip(*corners, strict=True), drawstyle="steps-pre", color=FAINT, lw=1.2, zorder=1)
    axes.set_xlim(left, right)
    label_points(axes, names, at=right + 0.03 * (right - left))


def _pass_at_k(group: Group, task: str) -> dict[int, Estimate]:
    """Mean pass@k on a task by k, in order, as far as any run has it."""
    lines = [run.pass_at_k.get(task, {}) for run in group.runs if run.pass_at_k]
    every_k = sorted({k for line in lines for k in line})
    return _over(every_k, group, lambda k: lambda run: (run.pass_at_k or {}).get(task, {}).get(k))


def _over(
    points: Iterable[int], group: Group, measure_at: Callable[[int], Measure]
) -> dict[int, Estimate]:
    """A group's means at each x, where it has any."""
    return {x: each for x in points if (each := group.mean(measure_at(x)))}


def _draw_gain(axes: Axes, lines: Sequence[Line], tasks: Sequence[str], task: int) -> None:
    drawn = [line for line in lines if line.estimates]
    plain_axes(axes, "trained so far", "normalised gain")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    lowest = min(each.mean for line in drawn for each in line.estimates.values())
    axes.set_ylim(min(0, lowest), 1)
    axes.set_xlim(-0.1, len(tasks) + 0.1)
    name_stages(axes, tasks)
    axes.axvline(task + 1, color=FAINT, lw=1, ls=":")
    for line in drawn:
        line.draw(axes)
    label_points(axes, [line.label() for line in drawn], at=len(tasks) + 0.1 + 0.04 * len(tasks))


def _draw_pass_at_k(axes: Axes, lines: Sequence[Line]) -> None:
    axes.set_xscale("log", base=2)
    plain_axes(axes, "k", "pass@k")
    for line in lines:
        line.draw(axes)
    ticks = sorted({k for line in lines for k in line.estimates})
    axes.set_xticks(ticks, [str(k) for k in ticks])
    axes.minorticks_off()
    label_points(axes, [line.label() for line in lines], at=1.6 * max(ticks))


def _interval_bar(axes: Axes, x: float, estimate: Estimate | None, colour: str) -> None:
    """The 95 % interval as a bar, clipped at the panel's edges; nothing if there is none."""
    if estimate and estimate.half_width:
        bottom, top = axes.get_ylim()
        low = max(estimate.mean - estimate.half_width, bottom)
        high = min(estimate.mean + estimate.half_width, top)
        axes.plot([x, x], [low, high], color=colour, lw=1.2, alpha=0.7, clip_on=False, marker="_")


def plain_axes(axes: Axes, across: str, upward: str) -> None:
    """Axes with percentages upward, a light grid and two spines."""
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(upward, color=INK)
    axes.tick_params(colors=INK, color=FAINT)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
