"""A figure as panels: drawn one by one for the page, together for the figure's files.

On the page, panels flow into as many columns as the screen has room for.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdft.evaluation.figures import TITLE_STYLE

PANEL_WIDTH, PANEL_HEIGHT = 4.8, 3.7
COLUMNS = 3
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
        axes.set_title(panel.title, parse_math=False, **TITLE_STYLE)
    return figure
