"""A run's directory, read and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sdft.evaluation.retention_record import StageRow, matrix_from_rows
from sdft.report.file_values import CONTROL, of_kind, read_json, read_yaml, text
from sdft.report.parts import OPTIONAL_PARTS, Shares, StageAnswer, shares

PATHS = ("trainer.default_root_dir",)
"""Options that say where a run lies, and nothing about what it does."""


@dataclass(frozen=True)
class Run:
    """What one run's directory says; None for a file that is not there.

    Args:
        name: The directory, as it was given.
        seed: Its ``seed_everything``.
        method: Name of the method.
        model: Name of the model.
        tasks: The K tasks in the order they were trained.
        matrix: (K + 1, K) accuracies, NaN where nothing was measured.
        test: Accuracy on the test rows by task.
        settings: Options by dotted name, without seed and paths.
        cost: What ``cost.json`` counted.
        capabilities: Stage -> suite of prior capabilities -> accuracy.
        pass_at_k: Task -> k -> pass@k.
        answers: The same validation prompts answered at every stage.
    """

    name: str
    seed: int | None
    method: str
    model: str
    tasks: tuple[str, ...]
    matrix: Tensor
    test: Shares | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, float | None] | None = None
    capabilities: Mapping[int, Shares] | None = None
    pass_at_k: Mapping[str, Mapping[int, float | None]] | None = None
    answers: tuple[StageAnswer, ...] | None = None


def read_run(folder: Path) -> Run:
    """Read a run's directory.

    Raises:
        ValueError: A file is missing or broken; names it and the place.
    """
    config = read_yaml(folder / "config.yaml")
    path = folder / "retention.json"
    record = read_json(path)
    optional: dict[str, Any] = {
        name: parse(folder / file) if (folder / file).exists() else None
        for name, (file, parse) in OPTIONAL_PARTS.items()
    }
    seed = config.get("seed_everything")
    try:
        tasks, matrix = _matrix(record)
        return Run(
            name=text(str(folder), "the directory's name"),
            seed=seed if type(seed) is int else None,
            method=text(record.get("method"), "'method'"),
            model=text(record.get("model"), "'model'"),
            tasks=tasks,
            matrix=matrix,
            test=_test(record),
            settings=_settings(config),
            **optional,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _matrix(record: Mapping[str, Any]) -> tuple[tuple[str, ...], Tensor]:
    """The tasks and the accuracy matrix, under names that can be shown."""
    tasks = tuple(
        text(task, "a name in 'tasks'") for task in of_kind(record.get("tasks"), list, "'tasks'")
    )
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"'tasks' is {list(tasks)}; it must name different tasks")
    rows: list[StageRow] = []
    for place, row in enumerate(of_kind(record.get("rows"), list, "'rows'")):
        where = f"row {place}"
        stage = of_kind(of_kind(row, dict, where).get("stage"), int, f"'stage' of {where}")
        after = row.get("after")
        rows.append(
            {
                "stage": stage,
                "after": None if after is None else text(after, f"'after' of {where}"),
                "global_step": 0,
                "accuracy": shares(row.get("accuracy"), f"'accuracy' of {where}"),
            }
        )
    return tasks, matrix_from_rows(tasks, rows)


def _test(record: Mapping[str, Any]) -> Shares | None:
    test = record.get("test")
    if test is None:
        return None
    return shares(of_kind(test, dict, "'test'").get("accuracy"), "'accuracy' of 'test'")


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Options of method, data and trainer that may move a result, as text.

    The trainer's lists and objects are loggers, callbacks and plugins, which only observe.
    """
    trainer = config.get("trainer")
    options = trainer.items() if isinstance(trainer, dict) else ()
    plain = {name: value for name, value in options if not isinstance(value, list | dict)}
    sections = {"model": config.get("model"), "data": config.get("data"), "trainer": plain}
    return {name: value for name, value in _leaves(sections) if name not in PATHS}


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value with its dotted name."""
    if isinstance(value, dict | list):
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in members:
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name.translate(CONTROL), str(value).translate(CONTROL)
