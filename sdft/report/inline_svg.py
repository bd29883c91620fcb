"""A figure as part of the page: its colours follow light and dark, its names stay its own."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markupsafe import Markup

from sdft.evaluation.figures import COLOURS, FAINT, INK
from sdft.report.charts import GRID

THEME = {
    INK: "--ink",
    FAINT: "--faint",
    GRID: "--grid",
    "#FFFFFF": "--paper",
    **{colour: f"--line-{index}" for index, colour in enumerate(COLOURS)},
}
"""A figure's colour -> the custom property of the page that takes its place."""

_COLOUR = re.compile("#[0-9a-fA-F]{6}")
_REFERENCE = re.compile(r"^#|(?<=url\(#)")


def inline_svg(svg: str, prefix: str, description: str) -> Markup:
    """An SVG image as an element of an HTML page.

    Args:
        svg: As matplotlib writes it.
        prefix: Put before every id, so that several images do not share them.
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
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # every text is escaped in it


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
