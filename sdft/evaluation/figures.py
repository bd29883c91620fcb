"""Draw the accuracy matrix: a line per task over the stages, and a heat map.

Figures are built as objects, without pyplot, so no global state changes and no display is needed.
Lines are distinguished by colour (the Okabe-Ito set, distinct under the common colour-vision
deficiencies, with ochre for its yellow, which is faint on white) and by a label at their end;
text never depends on colour alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from sdft.evaluation.retention_record import shortened

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C6D31",
)
INK = "#333333"
FAINT = "#9A9A9A"
BEFORE_TRAINING = (0, (2, 1.6))
BLANK: dict[str, Any] = {"hatch": "////", "ec": "#CFCFCF"}
TITLE_STYLE: dict[str, Any] = {"loc": "left", "color": INK, "fontsize": 12, "pad": 26}
LEGEND_PLACE: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (-0.01, 1.0),
    "ncols": 2,
    "frameon": False,
    "fontsize": 8.5,
    "labelcolor": INK,
    "borderaxespad": 0.2,
}
DARKEST = 1.25
"""Value at the dark end of the colour map: above 1, so that a frame shows on a cell of 100 %."""
TITLE_CHARACTERS = 90
LABEL_CHARACTERS = 30
TICK_CHARACTERS = 16
MIN_LABEL_GAP = 0.06
"""Smallest distance between two labels at line ends, as a fraction of the accuracy axis."""


def forgetting_curves(tasks: Sequence[str], matrix: Tensor, title: str = "") -> Figure:
    """One line per task: its accuracy before training and after every stage.

    Args:
        tasks: The K tasks in the order they are trained.
        matrix: (K + 1, K) accuracies in [0, 1], NaN where nothing was measured.
        title: A line above the panel, such as the method and the model.
    """
    figure = Figure(figsize=(_curves_width(len(tasks)), 4.6), dpi=120, layout="constrained")
    draw_curves(figure.subplots(), tasks, matrix)
    _add_title(figure, title)
    return figure


def accuracy_heatmap(tasks: Sequence[str], matrix: Tensor, title: str = "") -> Figure:
    """The accuracy matrix as coloured cells with numbers; arguments as above."""
    size = (_heatmap_width(len(tasks)), _height(len(tasks)))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    _draw_heatmap(figure.subplots(), tasks, matrix)
    _add_title(figure, title)
    return figure


def retention_figure(tasks: Sequence[str], matrix: Tensor, title: str = "") -> Figure:
    """Both panels side by side; arguments as above."""
    widths = (_curves_width(len(tasks)), _heatmap_width(len(tasks)))
    size = (sum(widths), _height(len(tasks)))
    figure = Figure(figsize=size, dpi=120, layout=ConstrainedLayoutEngine(wspace=0.06))
    curves, heatmap = figure.subplots(1, 2, width_ratios=widths)
    draw_curves(curves, tasks, matrix)
    _draw_heatmap(heatmap, tasks, matrix)
    _add_title(figure, title)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def _curves_width(num_tasks: int) -> float:
    return 5.6 + 0.45 * num_tasks


def _heatmap_width(num_tasks: int) -> float:
    return 2.9 + 0.62 * num_tasks


def _height(num_tasks: int) -> float:
    return 4.3 + 0.14 * num_tasks


def _add_title(figure: Figure, title: str) -> None:
    if title:
        text = shortened(title, TITLE_CHARACTERS)
        figure.suptitle(
            text, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False
        )


def draw_curves(axes: Axes, tasks: Sequence[str], matrix: Tensor) -> None:
    """A line per task: dashed until it is trained, a large marker there, solid after it.

    Args:
        axes: The panel to draw in.
        tasks: The K tasks in the order they are trained.
        matrix: (K + 1, K) accuracies in [0, 1], NaN where nothing was measured.
    """
    num_stages = len(tasks)
    for index, accuracies in enumerate(matrix.T.tolist()):
        colour = COLOURS[index % len(COLOURS)]
        trained = index + 1
        before, after = slice(0, trained + 1), slice(trained, None)
        stages = list(range(num_stages + 1))
        line: dict[str, Any] = {"color": colour, "clip_on": False, "zorder": 3}
        axes.plot(stages[before], accuracies[before], ls=BEFORE_TRAINING, lw=1.3, **line)
        axes.plot(stages[after], accuracies[after], lw=2.2, **line)
        axes.plot(stages, accuracies, ls="", marker="o", ms=5, mfc="white", mew=1.3, **line)
        axes.plot([trained], accuracies[trained : trained + 1], marker="o", ms=9, **line)
    _label_line_ends(axes, tasks, matrix)
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.12, num_stages + 0.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.spines["bottom"].set_position(("outward", 8))  # resets the ticks: name them after it
    name_stages(axes, tasks)
    axes.tick_params(colors=INK, color=FAINT)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.set_xlabel("trained so far", color=INK)
    axes.legend(
        handles=[
            Line2D([], [], color=FAINT, ls=BEFORE_TRAINING, lw=1.3, label="before training on it"),
            Line2D([], [], color=FAINT, lw=2.2, marker="o", ms=8, label="right after, and later"),
        ],
        **LEGEND_PLACE,
    )
    axes.set_title("Accuracy on each task", **TITLE_STYLE)


def _label_line_ends(axes: Axes, tasks: Sequence[str], matrix: Tensor) -> None:
    """Write each task's name beside its last measured point."""
    points = []
    for index, column in enumerate(matrix.T.tolist()):
        measured = [stage for stage, accuracy in enumerate(column) if not math.isnan(accuracy)]
        if measured:
            end = (measured[-1], column[measured[-1]])
            points.append((tasks[index], end, COLOURS[index % len(COLOURS)]))
    label_points(axes, points, offset=0.1 + 0.04 * len(tasks))


def label_points(
    axes: Axes,
    points: Sequence[tuple[str, tuple[float, float], str]],
    offset: float = 0.0,
    at: float | None = None,
) -> None:
    """Write names beside points with y in [0, 1], moved apart where they would overlap.

    Args:
        axes: The panel to write in.
        points: Name, position and colour of each.
        offset: Distance of a name to the right of its point.
        at: Horizontal position of all names instead, one below the other.
    """
    heights = _moved_apart([y for _, (_, y), _ in points])
    for (name, (x, y), colour), height in zip(points, heights, strict=True):
        axes.annotate(
            shortened(name, LABEL_CHARACTERS),
            xy=(x, y),
            xytext=(x + offset if at is None else at, height),
            color=colour,
            fontsize=9.5,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.8,
                "shrinkA": 1,
                "shrinkB": 6,
                "relpos": (0, 0.5),
            },
        )


def _moved_apart(heights: Sequence[float]) -> list[float]:
    """Heights in [0, 1] with at least ``gap`` between any two, in the same order.

    Neighbours that come too close are merged into a block around their mean.
    """
    gap = min(MIN_LABEL_GAP, 1 / max(len(heights) - 1, 1))
    blocks: list[tuple[float, list[int]]] = []
    for index in sorted(range(len(heights)), key=lambda index: heights[index]):
        blocks.append((heights[index], [index]))
        while len(blocks) > 1 and _overlap(blocks[-2], blocks[-1], gap):
            _, upper = blocks.pop()
            _, lower = blocks.pop()
            members = lower + upper
            mean = sum(heights[member] for member in members) / len(members)
            half = gap * (len(members) - 1) / 2
            blocks.append((min(max(mean, half), 1 - half), members))
    result = list(heights)
    for centre, members in blocks:
        for rank, member in enumerate(members):
            result[member] = centre + gap * (rank - (len(members) - 1) / 2)
    return result


def _overlap(lower: tuple[float, list[int]], upper: tuple[float, list[int]], gap: float) -> bool:
    return upper[0] - lower[0] < gap * (len(lower[1]) + len(upper[1])) / 2


def _draw_heatmap(axes: Axes, tasks: Sequence[str], matrix: Tensor) -> None:
    num_rows, num_tasks = matrix.shape
    axes.imshow(matrix.numpy(), cmap="Blues", vmin=0, vmax=DARKEST, aspect="auto")
    for stage, row in enumerate(matrix.tolist()):
        for index, accuracy in enumerate(row):
            if math.isnan(accuracy):
                axes.add_patch(_cell(index, stage, fill=False, lw=0, **BLANK))
            else:
                colour = "white" if accuracy > 0.78 else INK
                number = f"{100 * accuracy:.0f}"
                axes.text(index, stage, number, ha="center", va="center", color=colour)
            if stage == index + 1 and not math.isnan(accuracy):
                axes.add_patch(_cell(index, stage, fill=False, ec=INK, lw=1.6, zorder=4))
    axes.set_xticks([index + 0.5 for index in range(num_tasks - 1)], minor=True)
    axes.set_yticks([stage + 0.5 for stage in range(num_rows - 1)], minor=True)
    axes.grid(which="minor", color="white", lw=2)
    axes.tick_params(which="both", length=0, colors=INK)
    axes.spines[:].set_visible(False)
    _name_tasks(axes, tasks)
    names = [shortened(task, TICK_CHARACTERS) for task in tasks]
    names = ["before training", *(f"after {name}" for name in names)]
    axes.set_yticks(range(num_rows), names, parse_math=False, color=INK, fontsize=9.5)
    axes.legend(
        handles=[
            Rectangle((0, 0), 1, 1, fill=False, ec=INK, lw=1.6, label="right after training on it"),
            Rectangle((0, 0), 1, 1, fill=False, lw=0, label="not measured", **BLANK),
        ][: 1 + bool(matrix.isnan().any())],
        **LEGEND_PLACE,
    )
    axes.set_title("Accuracy matrix, %", **TITLE_STYLE)


def _cell(index: int, stage: int, **style: Any) -> Rectangle:
    return Rectangle((index - 0.5, stage - 0.5), 1, 1, clip_on=False, **style)


def name_stages(axes: Axes, tasks: Sequence[str]) -> None:
    """Name the points of an axis that counts the stages from 0, before training, to K."""
    names = ["before", *(shortened(task, TICK_CHARACTERS) for task in tasks)]
    axes.set_xticks(range(len(names)), names, **_slant(names))


def _name_tasks(axes: Axes, tasks: Sequence[str]) -> None:
    names = [shortened(task, TICK_CHARACTERS) for task in tasks]
    axes.set_xticks(range(len(names)), names, **_slant(names))


def _slant(names: Sequence[str]) -> dict[str, Any]:
    """Text style of tick labels: horizontal if they are few and short, else at an angle."""
    level = len(names) <= 4 and max(map(len, names)) <= 9
    turned = {} if level else {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    return {"parse_math": False, "color": INK, "fontsize": 9.5, **turned}
