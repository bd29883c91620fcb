"""The tables of a comparison, as text that both the page and the Markdown show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sdft.report.groups import Comparison, Group
from sdft.report.readings import (
    RETENTION,
    GainScale,
    capability,
    cell,
    common_suites,
    held_out_accuracy,
)
from sdft.report.runs import Run
from sdft.report.statistics import Estimate

NOT_MEASURED = "not measured"
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a table.

    Args:
        text: What stands in it.
        share: Between 0 and 1, for the shade behind it.
        own: The task was trained just before.
    """

    text: str
    share: float | None = None
    own: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A heading for the first column, the other columns, and rows of a name and cells."""

    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def matrix_table(group: Group, tasks: Sequence[str]) -> Table:
    """The accuracy matrix over the group's seeds, and the test rows below it."""
    rows = []
    for stage in range(len(tasks) + 1):
        name = f"after {tasks[stage - 1]}" if stage else "before training"
        estimates = [cell(group, stage, task) for task in range(len(tasks))]
        cells = [percent(each, group, own=stage == task + 1) for task, each in enumerate(estimates)]
        rows.append((name, cells))
    if any(run.test for run in group.runs):
        test = [group.mean(partial(held_out_accuracy, task=task)) for task in tasks]
        rows.append(("test rows, at the end", [percent(each, group) for each in test]))
    return Table("accuracy, %", tasks, rows)


def retention_table(comparison: Comparison) -> Table:
    """A row per method: what was learned and what was kept."""
    rows = [
        (group.label, [percent(group.mean(read), group, False) for read in RETENTION.values()])
        for group in comparison.groups
    ]
    return Table("means over tasks, %", list(RETENTION), rows)


def gain_table(comparison: Comparison) -> Table:
    """A row per method: normalised gain on every task after the last stage."""
    scales = [GainScale.of(comparison, task) for task in range(len(comparison.tasks))]
    last = len(comparison.tasks)
    rows = []
    for group in comparison.groups:
        gains = [scale.gain(group, last) if scale else None for scale in scales]
        rows.append((group.label, [plain(each, group) for each in gains]))
    return Table("normalised gain", comparison.tasks, rows)


def capability_table(comparison: Comparison) -> Table:
    """Accuracy on the suites of prior capabilities, before training and at the end."""
    suites = common_suites(comparison)
    sets = [*([suite] for suite in suites), suites]
    before = [
        Estimate.of(capability(run, each, stage=0) for run in comparison.runs) for each in sets
    ]
    rows = [("before training", [percent(each) for each in before])]
    for group in comparison.groups:
        after = [group.mean(partial(capability, suites=each)) for each in sets]
        rows.append((group.label, [percent(each, group) for each in after]))
    return Table("prior capabilities, %", [*suites, "mean"], rows)


def cost_table(comparison: Comparison) -> Table:
    """A row per method: time, tokens, operations, memory."""
    columns = cost_columns(comparison)
    rows = [
        (group.label, [plain(group.mean(read), group) for read in columns.values()])
        for group in comparison.groups
        if any(run.cost for run in group.runs)
    ]
    return Table("per run", list(columns), rows)


def cost_columns(comparison: Comparison) -> dict[str, Callable[[Run], float | None]]:
    """Heading -> what a run spent; times against SFT only where SFT was run as well."""
    columns: dict[str, Callable[[Run], float | None]] = {
        "optimizer steps": lambda run: _cost(run, "num_steps"),
        "training time, s": lambda run: _cost(run, "seconds"),
        "sampled tokens": lambda run: _cost(run, "completion_tokens"),
        "operations, 10¹² FLOP": lambda run: _cost(run, "operations", 1e12),
        "operations / SFT": lambda run: _cost(run, "operations_vs_sft"),
        "peak memory, GiB": lambda run: _cost(run, "peak_memory_bytes", GIB),
    }
    sft = Estimate.of(_cost(run, "seconds") for run in comparison.runs if _is_plain_sft(run))
    if sft and sft.mean:
        columns["time / SFT"] = lambda run: _cost(run, "seconds", sft.mean)
    return columns


def _is_plain_sft(run: Run) -> bool:
    """Whether it is SFT without replay."""
    return run.method == "SFT" and run.settings.get("data.replay_fraction", "0.0") in ("0", "0.0")


def percent(
    estimate: Estimate | None, group: Group | None = None, shaded: bool = True, own: bool = False
) -> Cell:
    """A mean in percent with its interval."""
    if estimate is None:
        return Cell(NOT_MEASURED)
    half = estimate.half_width
    text = f"{100 * estimate.mean:.1f}" + (f" ± {100 * half:.1f}" if half is not None else "")
    return Cell(text + _seeds(estimate, group), estimate.mean if shaded else None, own)


def plain(estimate: Estimate | None, group: Group) -> Cell:
    """A mean in its own unit with its interval."""
    if estimate is None:
        return Cell(NOT_MEASURED)
    half = estimate.half_width
    text = _number(estimate.mean) + (f" ± {_number(half)}" if half is not None else "")
    return Cell(text + _seeds(estimate, group))


def _cost(run: Run, name: str, unit: float = 1.0) -> float | None:
    value = (run.cost or {}).get(name)
    return None if value is None else value / unit


def _number(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seeds(estimate: Estimate, group: Group | None) -> str:
    """How many of the seeds a mean is over, where it is not all of them."""
    whole = group is None or estimate.num_seeds == len(group.runs)
    return "" if whole or group is None else f" ({estimate.num_seeds} of {len(group.runs)} seeds)"
