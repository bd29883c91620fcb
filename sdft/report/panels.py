"""Draws a figure as panels: one by one for the page, together for the figure's files.

On the page, the number of columns fits the screen, and the colours follow its light or dark scheme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdft.evaluation.figures import COLOURS, FAINT, INK, TITLE_STYLE

PANEL_WIDTH, PANEL_HEIGHT = 4.8, 3.7
COLUMNS = 3
TEXT_IN_SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "sdft"}


GRID = "#E6E6E6"
THEME = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    "#FFFFFF": "--paper",
    **{colour: f"--line-{index}" for index, colour in enumerate(COLOURS)},
}
"""A figure's colour -> the CSS custom property of the page that replaces it."""

_COLOUR = re.compile("#[0-9a-fA-F]{6}")
_REFERENCE = re.compile(r"^#|(?<=url\(#)")


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: Above the panel.
        description: What it shows, for readers who cannot see it.
        draw: Draws the panel.
        height: Height in inches.
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


def inline_svg(svg: str, prefix: str, description: str) -> Markup:
    """An SVG image as an element of an HTML page.

    Args:
        svg: The image, as matplotlib writes it.
        prefix: Added before every id, so that several images do not share them.
        description: What the image shows.
    """
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {
            _local(name): _adapted(_local(name), value, prefix)
            for name, value in element.attrib.items()
        }
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    del root.attrib["width"], root.attrib["height"]
    root.attrib.update({"role": "img", "aria-label": description})
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # all text in it is escaped


def _local(name: str) -> str:
    """A name without its namespace: HTML knows SVG's elements without."""
    return name.rpartition("}")[2]


def _adapted(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == "style":
        value = _COLOUR.sub(lambda match: _themed(match.group()), value)
    return _REFERENCE.sub(lambda match: f"{match.group()}{prefix}-", value)


def _themed(colour: str) -> str:
    variable = THEME.get(colour.upper())
    return f"var({variable})" if variable else colour


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
    """The panels, grouped in rows."""
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
