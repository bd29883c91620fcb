"""Builds the tables of a comparison, as text for both the page and the Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from sdft.evaluation.metrics import last_measured_stage
from sdft.evaluation.statistics import Estimate
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
    held_out_accuracy,
)
from sdft.report.load_runs import Run, StageAnswer

NOT_MEASURED = "not measured"
UNDEFINED = "undefined"
GIB = 2**30
POWERS = {3: "10³", 6: "10⁶", 9: "10⁹", 12: "10¹²", 15: "10¹⁵", 18: "10¹⁸", 21: "10²¹"}
NUM_DIGITS = 3
"""Significant digits of a number that is not a fraction."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One entry of a table.

    Args:
        text: The text of the cell.
        share: Between 0 and 1, for the shade behind the text.
        own: Whether the task was trained just before.
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


@dataclass(frozen=True)
class Prompt:
    """One prompt, and every run's answers to it.

    Args:
        first: Any answer to it, for the prompt itself and the expected answer.
        lines: Method and run -> the answer at each stage, None where there is none.
    """

    first: StageAnswer
    lines: dict[str, list[StageAnswer | None]] = field(default_factory=dict)


def matrix_table(group: Group, tasks: Sequence[str]) -> Table:
    """The accuracy matrix over the group's seeds, and the test rows below it."""
    rows = []
    for stage in range(len(tasks) + 1):
        name = f"after {tasks[stage - 1]}" if stage else "before training"
        values = [group.values(accuracy_at(stage, task)) for task in range(len(tasks))]
        cells = [percent(each, own=stage == task + 1) for task, each in enumerate(values)]
        rows.append((name, cells))
    if any(run.test for run in group.runs):
        test = [group.values(partial(held_out_accuracy, task=task)) for task in tasks]
        rows.append(("test rows, at the end", [percent(each) for each in test]))
    return Table("accuracy, %", tasks, rows)


def retention_table(comparison: Comparison) -> Table:
    """A row per method: what was learned and what was kept."""
    rows = [
        (group.label, [percent(group.values(each), shaded=False) for each in RETENTION.values()])
        for group in comparison.groups
    ]
    return Table("means over tasks, %", list(RETENTION), rows)


def gain_table(comparison: Comparison) -> Table:
    """A row per method: normalised gain on every task after the last stage."""
    scales = [GainScale.of(comparison, task) for task in range(len(comparison.tasks))]
    last = len(comparison.tasks)
    rows = []
    for group in comparison.groups:
        gains = [group.values(scale.gain_at(last)) if scale else [] for scale in scales]
        rows.append((group.label, [scaled(each, decimals=2) for each in gains]))
    return Table("normalised gain", comparison.tasks, rows)


def capability_table(comparison: Comparison) -> Table:
    """Accuracy on the suites of prior capabilities, before training and at the end."""
    suites = common_suites(comparison)
    sets = [*([suite] for suite in suites), suites]
    before = [[capability_before(run, each) for run in comparison.runs] for each in sets]
    rows = [("before training", [percent(each) for each in before])]
    for group in comparison.groups:
        after = [group.values(partial(capability, suites=each)) for each in sets]
        rows.append((group.label, [percent(each) for each in after]))
    return Table("prior capabilities, %", [*suites, "mean"], rows)


def cost_table(comparison: Comparison) -> Table:
    """A row per method: time, tokens, FLOPs, memory."""
    columns = cost_columns(comparison)
    rows = [
        (group.label, [scaled(group.values(measure)) for measure in columns.values()])
        for group in comparison.groups
        if any(run.cost for run in group.runs)
    ]
    return Table("per run", list(columns), rows)


def cost_columns(comparison: Comparison) -> dict[str, Measure]:
    """Heading -> what a run spent; times relative to SFT only if SFT was run as well."""
    power = _power_of(max((_cost(run, "flops") or 0.0 for run in comparison.runs), default=0))
    columns: dict[str, Measure] = {
        "optimizer steps": lambda run: _cost(run, "num_steps"),
        "training time, s": lambda run: _cost(run, "seconds"),
        "sampled tokens": lambda run: _cost(run, "completion_tokens"),
        f"FLOPs, {POWERS[power]}": lambda run: _cost(run, "flops", 10.0**power),
        "FLOPs / SFT": lambda run: _cost(run, "flops_vs_sft"),
        "peak memory, GiB": lambda run: _cost(run, "peak_memory_bytes", GIB),
    }
    sft = Estimate.of(_cost(run, "seconds") for run in comparison.runs if _is_plain_sft(run))
    if sft and sft.mean:
        columns["time / SFT"] = lambda run: _cost(run, "seconds", sft.mean)
    return columns


def prompts_of(comparison: Comparison) -> list[Prompt]:
    """The prompts in the order of their tasks; of each method, the first run with answers."""
    prompts: dict[tuple[str, str], Prompt] = {}
    num_rows = len(comparison.tasks) + 1
    for group in comparison.groups:
        run = next((run for run in group.runs if run.answers), None)
        for answer in _answers_in_the_matrix(run) if run else ():
            prompt = prompts.setdefault((answer.task, answer.id), Prompt(answer))
            line = prompt.lines.setdefault(group.label, [None] * num_rows)
            line[answer.stage] = answer
    return sorted(prompts.values(), key=lambda each: comparison.tasks.index(each.first.task))


def percent(values: Sequence[float | None], shaded: bool = True, own: bool = False) -> Cell:
    """The mean over seeds of fractions from -1 to 1, in percent, with its interval.

    Args:
        values: One per run: None where it was not measured, NaN where it is undefined.
        shaded: Whether the mean is shown as a shade behind the number too.
        own: As in :class:`Cell`.
    """
    estimate = Estimate.of(values)
    share = estimate.mean if estimate and shaded else None
    return Cell(scaled(values, 100.0, decimals=1).text, share, own)


def scaled(
    values: Sequence[float | None], factor: float = 1.0, decimals: int | None = None
) -> Cell:
    """The mean over seeds times a factor, with its interval, or why there is no mean.

    Args:
        values: As above.
        factor: Such as 100 for percent.
        decimals: Decimals of mean and interval; None gives the larger three significant digits.
    """
    estimate = Estimate.of(values)
    if estimate is None:
        measured = any(value is not None for value in values)
        return Cell(UNDEFINED if measured else NOT_MEASURED)
    mean, half = factor * estimate.mean, factor * (estimate.half_width or 0.0)
    num = _num_decimals(mean, half) if decimals is None else decimals
    interval = plus_minus(half, num)
    partly = f" ({estimate.num_seeds} of {len(values)} seeds)"
    partly = partly if estimate.num_seeds < len(values) else ""
    return Cell(f"{mean:,.{num}f}{interval}{partly}")


def plus_minus(half_width: float | None, decimals: int) -> str:
    """An interval's half width, rounded up so that it never shows as 0; empty without one."""
    if not half_width:
        return ""
    return f" ± {math.ceil(half_width * 10**decimals - 1e-9) / 10**decimals:,.{decimals}f}"


def _num_decimals(mean: float, half: float) -> int:
    """Number of decimals that gives the larger of the two three significant digits."""
    if not half and mean == int(mean):
        return 0
    return max(0, NUM_DIGITS - 1 - math.floor(math.log10(max(abs(mean), half))))


def _power_of(largest: float) -> int:
    """The largest of the powers of ten that does not exceed a number of FLOPs."""
    return max((power for power in POWERS if 10**power <= largest), default=min(POWERS))


def _cost(run: Run, name: str, unit: float = 1.0) -> float | None:
    value = (run.cost or {}).get(name)
    return None if value is None else value / unit


def _is_plain_sft(run: Run) -> bool:
    """Whether it is SFT without replay."""
    return run.method == "SFT" and run.settings.get("data.replay_fraction", "0.0") in ("0", "0.0")


def _answers_in_the_matrix(run: Run) -> list[StageAnswer]:
    """The run's answers at the stages of its accuracy matrix."""
    last = last_measured_stage(run.matrix)
    measured = range(0 if last is None else last + 1)
    return [each for each in run.answers or () if each.task in run.tasks and each.stage in measured]
