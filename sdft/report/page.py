"""The report's files: one page without a network, Markdown beside it, and the figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from sdft.evaluation.metrics import DEFINITIONS
from sdft.report.answer_table import prompts_of
from sdft.report.charts import capability_chart, gain_chart, pass_at_k_chart, retention_chart
from sdft.report.groups import Comparison
from sdft.report.inline_svg import inline_svg
from sdft.report.missing import PARTS, absence, missing
from sdft.report.panels import Chart, files_of, panel_svg
from sdft.report.tables import (
    capability_table,
    cost_table,
    gain_table,
    matrix_table,
    retention_table,
)
from sdft.runs.files import write_bytes_atomically, write_text_atomically

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")


CHARTS = (retention_chart, gain_chart, capability_chart, pass_at_k_chart)


def write_report(
    comparisons: Sequence[Comparison], output: Path, *, show_rows: bool = True
) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the figures.

    Args:
        comparisons: What to show, a section each.
        output: The directory to write to; files of an earlier report are replaced.
        show_rows: Whether to show prompts, which are rows of the data, and answers to them.

    Returns:
        The files, the page first.
    """
    sections = [_section(each, place, show_rows) for place, each in enumerate(comparisons)]
    runs = [run for each in comparisons for run in each.runs]
    content = {"sections": sections, "num_runs": len(runs), "definitions": DEFINITIONS}
    written = [output / "report.html", output / "report.md"]
    for section in sections:
        for chart in section["charts"].values():
            for name, data in chart["files"].items():
                written.append(output / name)
                write_bytes_atomically(output / name, data)
    page = _environment().get_template("report.html.jinja")
    write_text_atomically(written[0], page.render(content))
    markdown = _environment(finalize=_markdown).get_template("report.md.jinja")
    write_text_atomically(written[1], markdown.render(content))
    return written


def _environment(
    finalize: Callable[[object], object] | None = None,
) -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=PackageLoader("sdft.report"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _section(comparison: Comparison, place: int, show_rows: bool) -> dict[str, Any]:
    """What the templates show of one comparison."""
    charts = [draw(comparison) for draw in CHARTS]
    return {
        "comparison": comparison,
        "place": place,
        "missing": missing(comparison),
        "absence": {part: absence(comparison, part) for part in PARTS},
        "matrices": [matrix_table(group, comparison.tasks) for group in comparison.groups],
        "retention": retention_table(comparison),
        "gain": gain_table(comparison),
        "capabilities": capability_table(comparison),
        "cost": cost_table(comparison),
        "charts": {chart.name: _drawn(chart, place) for chart in charts if chart.panels},
        "show_rows": show_rows,
        "prompts": prompts_of(comparison) if show_rows else (),
        "stages": ["before training", *(f"after {task}" for task in comparison.tasks)],
    }


def _drawn(chart: Chart, place: int) -> dict[str, Any]:
    """A chart for the page, and the content of its files by name."""
    name = f"{chart.name}-{place + 1}" if place else chart.name
    return {
        "name": name,
        "caption": chart.caption,
        "panels": [
            inline_svg(panel_svg(panel), f"{name}-{number}", panel.description)
            for number, panel in enumerate(chart.panels)
        ],
        "files": {f"{name}{suffix}": data for suffix, data in files_of(chart).items()},
    }


def _markdown(value: object) -> Markup:
    """Text that Markdown shows as it is, on one line; what a macro made stays as it is."""
    if isinstance(value, Markup):
        return value
    escaped = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_MARKDOWN.sub(r"\\\1", escaped).replace("\n", "<br>"))
