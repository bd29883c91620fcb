"""Convert a run's measured rows to a matrix, to ``retention.json``, and to a text table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

from torch import Tensor

from sdft.evaluation.metrics import (
    DEFINITIONS,
    AccuracyMatrix,
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)

NAME_CHARACTERS = 18
"""Longest task name in the table."""

NUM_DECIMALS = 6
"""Decimals kept of a measured number, all of which a 32-bit float in [0, 1] can represent."""


class StageRow(TypedDict):
    """Accuracies measured at one point of the sequence, as one entry of ``retention.json``.

    ``stage`` is the row of the accuracy matrix, ``after`` the task trained just before
    (None before any training), ``accuracy`` has None for tasks that were not measured.
    """

    stage: int
    after: str | None
    global_step: int
    accuracy: dict[str, float | None]


class HeldOutScores(TypedDict):
    """Accuracies on the test rows, and the optimizer steps of the weights that were scored."""

    accuracy: dict[str, float | None]
    global_step: int


class RetentionRecord(TypedDict):
    """Everything in ``retention.json``; None where nothing was measured."""

    method: str
    model: str
    tasks: list[str]
    rows: list[StageRow]
    average_accuracy: float | None
    learning_accuracy: dict[str, float | None]
    forgetting: dict[str, float | None]
    backward_transfer: float | None
    forward_transfer: float | None
    test: HeldOutScores | None
    definitions: dict[str, str]


def stage_row(
    tasks: Sequence[str], stage: int, global_step: int, accuracy: Mapping[str, float | None]
) -> StageRow:
    """Build one measured row.

    Args:
        tasks: The K tasks in the order they are trained.
        stage: Number of completed stages, 0 to K.
        global_step: Optimizer steps taken so far.
        accuracy: Measured accuracy by task, in [0, 1]; NaN and None both mean not measured.
    """
    if not 0 <= stage <= len(tasks):
        raise ValueError(f"stage {stage} lies outside 0 to {len(tasks)}, the number of tasks")
    return {
        "stage": stage,
        "after": tasks[stage - 1] if stage else None,
        "global_step": global_step,
        "accuracy": {task: rounded(accuracy[task]) for task in tasks},
    }


def matrix_from_rows(tasks: Sequence[str], rows: Sequence[StageRow]) -> Tensor:
    """Build the accuracy matrix from measured rows.

    Args:
        tasks: The K tasks in the order they are trained.
        rows: Measured rows, in any order.

    Returns:
        (K + 1, K), float64, NaN where nothing was measured.

    Raises:
        ValueError: The rows were measured for another sequence of tasks, or an accuracy is
            outside [0, 1].
    """
    matrix = AccuracyMatrix(len(tasks))
    for row in rows:
        _check_same_sequence(tasks, row)
        for task, accuracy in row["accuracy"].items():
            if accuracy is not None:
                matrix.update(row["stage"], tasks.index(task), accuracy)
    return matrix.compute()


def retention_record(
    method: str,
    model: str,
    tasks: Sequence[str],
    rows: Sequence[StageRow],
    test: HeldOutScores | None = None,
) -> RetentionRecord:
    """Build the content of ``retention.json`` from the rows measured so far.

    Args:
        method: Name of the training method.
        model: Name of the model that was trained.
        tasks: The K tasks in the order they are trained.
        rows: Measured rows.
        test: Scores on the test rows, once they exist.
    """
    matrix = matrix_from_rows(tasks, rows)
    return {
        "method": method,
        "model": model,
        "tasks": list(tasks),
        "rows": list(rows),
        "average_accuracy": rounded(average_accuracy(matrix).item()),
        "learning_accuracy": _by_task(tasks, learning_accuracy(matrix)),
        "forgetting": _by_task(tasks, forgetting(matrix)),
        "backward_transfer": rounded(backward_transfer(matrix).item()),
        "forward_transfer": rounded(forward_transfer(matrix).item()),
        "test": test,
        "definitions": dict(DEFINITIONS),
    }


def format_matrix(
    tasks: Sequence[str], rows: Sequence[StageRow], test: HeldOutScores | None = None
) -> str:
    """The accuracy matrix as a plain text table, in percent; a dash where nothing was measured.

    Args:
        tasks: The K tasks in the order they are trained.
        rows: Measured rows.
        test: Scores on the test rows, for a last line.

    Returns:
        Lines without a final newline: a heading, then one line for each row of ``rows``.
    """
    matrix = matrix_from_rows(tasks, rows)
    table = [["accuracy, %", *(shortened(task, NAME_CHARACTERS) for task in tasks), "average"]]
    for row in sorted(rows, key=lambda row: row["stage"]):
        after = row["after"]
        name = "before training" if after is None else f"after {shortened(after, NAME_CHARACTERS)}"
        table.append([name, *_percentages(matrix[row["stage"]].tolist())])
    if test is not None:
        table.append(["test rows", *_percentages([test["accuracy"][task] for task in tasks])])
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    lines = []
    for name, *numbers in table:
        cells = [text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return "\n".join(lines)


def shortened(text: str, max_characters: int) -> str:
    """The text, or its two ends around an ellipsis when it is longer than allowed."""
    if len(text) <= max_characters:
        return text
    head = max_characters // 2
    return f"{text[:head]}…{text[len(text) - (max_characters - head - 1) :]}"


def rounded(value: float | None) -> float | None:
    """A number rounded for files; None for NaN."""
    return None if value is None or math.isnan(value) else round(value, NUM_DECIMALS)


def _by_task(tasks: Sequence[str], values: Tensor) -> dict[str, float | None]:
    return {task: rounded(value) for task, value in zip(tasks, values.tolist(), strict=True)}


def _percentages(accuracies: Sequence[float | None]) -> list[str]:
    """K accuracies and their mean as text; the mean is known only if all of them are."""
    known = [math.nan if accuracy is None else accuracy for accuracy in accuracies]
    values = [*known, sum(known) / len(known)]
    return ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in values]


def _check_same_sequence(tasks: Sequence[str], row: StageRow) -> None:
    """Reject a row that was measured for other tasks, or in another order."""
    stage = row["stage"]
    unknown = [task for task in row["accuracy"] if task not in tasks]
    expected = tasks[stage - 1] if 0 < stage <= len(tasks) else None
    if unknown or not 0 <= stage <= len(tasks) or row["after"] != expected:
        raise ValueError(
            f"the row of stage {stage} (after {row['after']!r}, tasks {list(row['accuracy'])}) was "
            f"measured for another sequence than {list(tasks)}; use the tasks and the order that "
            "the run began with"
        )
