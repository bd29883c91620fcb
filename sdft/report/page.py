"""Writes the report: one self-contained page, the same in Markdown, and the figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from sdft.evaluation.metrics import DEFINITIONS, last_measured_stage
from sdft.report.charts import capability_chart, gain_chart, pass_at_k_chart, retention_chart
from sdft.report.comparison import Comparison, capability, common_suites
from sdft.report.load_runs import Run
from sdft.report.panels import Chart, files_of, inline_svg, panel_svg
from sdft.report.prior_change import prior_tables
from sdft.report.tables import (
    capability_table,
    cost_table,
    gain_table,
    matrix_table,
    prompts_of,
    retention_table,
)
from sdft.report.trade_off import trade_offs
from sdft.report.trade_off_section import matched_table, pair_table, trade_off_chart
from sdft.runs.files import write_bytes_atomically, write_text_atomically

MOST_NAMES = 6
"""Number of runs that a sentence names before it counts the others."""

PARTS = {
    "test": ("accuracies on test rows", "the line of test rows needs"),
    "capabilities": (
        "prior capabilities after the last stage on shared suites (capabilities.json)",
        "figure 4 needs",
    ),
    "pass_at_k": ("pass@k (pass_at_k.json)", "its curves need"),
    "cost": ("costs (cost.json)", "the cost table needs"),
    "trajectory": ("trajectories (trajectory.jsonl)", "what learning costs needs"),
    "answers": ("answers at every stage (answers/stage-*.jsonl)", "the rollouts side by side need"),
}
"""Part of a run -> its description, and the part of the report that needs it."""

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")
_BLANK_LINES = re.compile(r"\n\s*\n")

CHARTS = (retention_chart, gain_chart, capability_chart, pass_at_k_chart, trade_off_chart)


def write_report(
    comparisons: Sequence[Comparison], output: Path, *, show_rows: bool = True
) -> list[Path]:
    """Write ``report.html``, ``report.md`` and the figures.

    Args:
        comparisons: The comparisons to show, in a section each.
        output: The directory to write to; files of an earlier report are replaced.
        show_rows: Whether to show prompts, which come from the data, and answers to them.

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
    environment = ImmutableSandboxedEnvironment(
        loader=PackageLoader("sdft.report"),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["compact"] = _compact
    return environment


def _section(comparison: Comparison, place: int, show_rows: bool) -> dict[str, Any]:
    """The values that the templates show of one comparison."""
    charts = [draw(comparison) for draw in CHARTS]
    found = trade_offs(comparison)
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
        "trade_offs": [(each.task, [matched_table(each), pair_table(each)]) for each in found],
        "prior_changes": prior_tables(comparison, found),
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


def _compact(text: str) -> str:
    """A model's text without blank lines around and inside it."""
    compact = _BLANK_LINES.sub("\n\n", text).strip()
    return compact or (f"(blank: {len(text)} characters)" if text else "(empty)")


def _markdown(value: object) -> Markup:
    """Text escaped for Markdown, on one line; the output of a macro is not escaped."""
    if isinstance(value, Markup):
        return value
    escaped = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Markup(_MARKDOWN.sub(r"\\\1", escaped).replace("\n", "<br>"))


def absence(comparison: Comparison, part: str) -> str | None:
    """A sentence about the runs without a part; None if all have it."""
    has = _presence(comparison, part)
    without = [run.name for run in comparison.runs if not has(run)]
    what, need = PARTS[part]
    if not without:
        return None
    if len(without) == len(comparison.runs):
        return f"No run has {what}, which {need}."
    return f"{_names(without)} of {len(comparison.runs)} have no {what}, which {need}."


def missing(comparison: Comparison) -> list[str]:
    """A sentence for each missing part."""
    sentences = [absence(comparison, part) for part in PARTS]
    return [
        *_unfinished(comparison),
        *_without_interval(comparison),
        *(sentence for sentence in sentences if sentence),
    ]


def _presence(comparison: Comparison, part: str) -> Callable[[Run], bool]:
    if part != "capabilities":
        return lambda run: bool(getattr(run, part))
    suites = common_suites(comparison)
    return lambda run: capability(run, suites) is not None


def _unfinished(comparison: Comparison) -> list[str]:
    """Sentences about unfinished sequences, and about rows with missing cells."""
    sentences = []
    for run in comparison.runs:
        last = last_measured_stage(run.matrix)
        rows = 0 if last is None else last + 1
        holes = int(run.matrix[:rows].isnan().sum())
        if rows < len(run.matrix):
            sentences.append(
                f"{run.name} has measured {rows} of {len(run.matrix)} rows of its accuracy matrix: "
                "they are in the matrix, and its means over tasks are left out."
            )
        if holes:
            sentences.append(f"{run.name} has not measured {holes} of the cells in these rows.")
    return sentences


def _without_interval(comparison: Comparison) -> list[str]:
    single = [group.label for group in comparison.groups if len(group.runs) == 1]
    if not single:
        return []
    return [f"One seed has no interval: {', '.join(single)}. Intervals need at least two seeds."]


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    listed = f"{shown} and {more} more" if more > 0 else shown
    return f"{len(names)} ({listed})"
