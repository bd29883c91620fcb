"""Reads and checks a run's directory; absent optional files are None."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sdft.evaluation.retention_record import StageRow, matrix_from_rows
from sdft.report.trajectory_rows import TrajectoryRow, read_trajectory
from sdft.runs.file_values import (
    CONTROL,
    amount,
    finite,
    member,
    of_kind,
    read_json,
    read_yaml,
    share,
    shares,
    text,
)
from sdft.runs.jsonl import read_records

PATHS = ("trainer.default_root_dir",)  # where a run is stored, which does not affect it

MODEL = "model.init_args.pretrained"
ANY_SEED = "seed*"
"""Stands for the run's seed in the path of its model: a study's runs begin from one per seed."""

NUM_PROMPTS = 2
"""Number of prompts per task whose answers are shown."""

COUNTED = ("num_steps", "completion_tokens", "flops_vs_sft", "peak_memory_bytes")
"""Members of ``cost.json`` that are read as they are."""

SFT = "sft"
"""The member of ``flops`` that the run did not spend: the cost of SFT on the same rows."""

Shares = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class StageAnswer:
    """One validation prompt, answered greedily at one point of the sequence."""

    stage: int
    task: str
    id: str
    prompt: str
    expected: str
    answer: str
    score: float | None


@dataclass(frozen=True)
class Run:
    """The content of one run's directory; None for an absent file.

    Args:
        name: The directory, as given.
        seed: Its ``seed_everything``.
        method: Name of the method.
        model: Name of the model.
        tasks: The K tasks in the order they were trained.
        matrix: (K + 1, K) accuracies, NaN where nothing was measured.
        test: Accuracy on the test rows by task.
        settings: Options by dotted name, without seed and paths.
        cost: The sums in ``cost.json``.
        capabilities: Stage -> suite of prior capabilities -> accuracy.
        pass_at_k: Task -> k -> pass@k.
        answers: The same validation prompts answered at every stage.
        trajectory: The measurements within the stages, in order.
        margins: Stage -> suite of prior capabilities -> margin of each row (``margins.py``).
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
    trajectory: tuple[TrajectoryRow, ...] | None = None
    margins: Mapping[int, Mapping[str, Sequence[float]]] | None = None

    @property
    def first_stage(self) -> int:
        """The row of the matrix before training; above 0 if tasks were trained before the run."""
        measured = (~self.matrix.isnan()).any(dim=1).nonzero().flatten()
        return int(measured[0]) if measured.numel() else 0


def read_run(folder: Path) -> Run:
    """Read a run's directory.

    Raises:
        ValueError: A file or a key is missing, or its value is invalid; names the file and the
            place, and says what to do.
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
            method=text(member(record, "method", str), "'method'"),
            model=_of_any_seed(text(member(record, "model", str), "'model'"), seed),
            tasks=tasks,
            matrix=matrix,
            test=_test(record),
            settings=_settings(config, seed),
            **optional,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _matrix(record: Mapping[str, Any]) -> tuple[tuple[str, ...], Tensor]:
    """The tasks and the accuracy matrix, under names that can be shown."""
    tasks = tuple(text(task, "a name in 'tasks'") for task in member(record, "tasks", list))
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"'tasks' is {list(tasks)}; it must name different tasks")
    rows: list[StageRow] = []
    for place, row in enumerate(member(record, "rows", list)):
        where = f"row {place}"
        after = of_kind(row, dict, where).get("after")
        rows.append(
            {
                "stage": member(row, "stage", int, f"{where}: "),
                "after": None if after is None else text(after, f"'after' of {where}"),
                "global_step": 0,
                "accuracy": shares(member(row, "accuracy", dict, f"{where}: "), where),
            }
        )
    return tasks, matrix_from_rows(tasks, rows)


def _test(record: Mapping[str, Any]) -> Shares | None:
    test = record.get("test")
    if test is None:
        return None
    accuracy = member(of_kind(test, dict, "'test'"), "accuracy", dict, "'test': ")
    return shares(accuracy, "'accuracy' of 'test'")


def _of_any_seed(model: str, seed: object) -> str:
    """A model's path without the run's own seed, so that runs from starts of all seeds compare."""
    return re.sub(rf"seed{seed}(?![0-9])", ANY_SEED, model)


def _settings(config: Mapping[str, Any], seed: object) -> dict[str, str]:
    """Options of method, data and trainer that may affect a result, as text.

    The trainer's lists and objects are loggers, callbacks and plugins, which only observe.
    """
    trainer = config.get("trainer")
    options = trainer.items() if isinstance(trainer, dict) else ()
    plain = {name: value for name, value in options if not isinstance(value, list | dict)}
    sections = {"model": config.get("model"), "data": config.get("data"), "trainer": plain}
    settings = {name: value for name, value in _leaves(sections) if name not in PATHS}
    if MODEL in settings:
        settings[MODEL] = _of_any_seed(settings[MODEL], seed)
    return settings


def _leaves(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value with its dotted name."""
    if isinstance(value, dict | list):
        members = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in members:
            yield from _leaves(item, f"{name}.{key}".lstrip("."))
    else:
        yield name.translate(CONTROL), str(value).translate(CONTROL)


def _cost(path: Path) -> dict[str, float | None]:
    """The sums of ``cost.json``, with seconds and FLOPs over all phases."""
    record = read_json(path)
    seconds = member(record, "seconds", dict, f"{path}: ")
    flops = member(record, "flops", dict, f"{path}: ")
    cost = {name: amount(record.get(name), f"{path}: {name!r}") for name in COUNTED}
    times = [amount(value, f"{path}: {name!r}") for name, value in seconds.items()]
    spent = [amount(value, f"{path}: {name!r}") for name, value in flops.items() if name != SFT]
    return {**cost, "seconds": _total(times), "flops": _total(spent)}


def _total(amounts: Sequence[float | None]) -> float | None:
    """The sum, or None if there is nothing to add or a part is missing."""
    known = [each for each in amounts if each is not None]
    return sum(known) if known and len(known) == len(amounts) else None


def _capabilities(path: Path) -> dict[int, Shares]:
    """The score on each suite of prior capabilities, by stage."""
    result = {}
    for place, row in enumerate(member(read_json(path), "rows", list, f"{path}: ")):
        where = f"{path}: row {place}"
        stage = member(of_kind(row, dict, where), "stage", int, f"{where}: ")
        result[stage] = shares(member(row, "scores", dict, f"{where}: "), where)
    return result


def _margins(path: Path) -> dict[int, dict[str, list[float]]]:
    """The margin of every row of each suite that has margins, by stage."""
    result = {}
    for place, row in enumerate(member(read_json(path), "rows", list, f"{path}: ")):
        where = f"{path}: row {place}: 'margins'"
        by_suite = of_kind(row.get("margins", {}), dict, where)
        result[row["stage"]] = {
            text(suite, where): [
                finite(each, f"{where} of {suite!r}")
                for each in of_kind(values, list, f"{where} of {suite!r}")
            ]
            for suite, values in by_suite.items()
        }
    return result


def _pass_at_k(path: Path) -> dict[str, dict[int, float | None]]:
    """Pass@k by task and k."""
    by_task = member(read_json(path), "pass_at_k", dict, f"{path}: ")
    return {
        text(task, str(path)): {
            _count(k, f"{path}: {task!r}"): share(value, f"{path}: pass@{k} of {task!r}")
            for k, value in of_kind(by_k, dict, f"{path}: {task!r}").items()
        }
        for task, by_k in by_task.items()
    }


def _answers(folder: Path) -> tuple[StageAnswer, ...]:
    """The answers to every task's first prompts, from the files of all stages."""
    answers: list[StageAnswer] = []
    for path in sorted(folder.glob("stage-*.jsonl")):
        stage = _count(path.stem.removeprefix("stage-"), f"{path}: the name", least=0)
        taken: Counter[object] = Counter()
        for where, record in read_records(path):
            taken[task := record.get("task")] += 1
            if taken[task] <= NUM_PROMPTS:
                answers.append(_answer(record, stage, where))
    return tuple(answers)


def _answer(record: dict[str, Any], stage: int, where: str) -> StageAnswer:
    expected = record.get("expected")
    words = expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
    return StageAnswer(
        stage=stage,
        score=share(record.get("score"), f"{where}: 'score'"),
        expected=text(words, f"{where}: 'expected'"),
        **{
            name: text(member(record, name, str, f"{where}: "), f"{where}: {name!r}")
            for name in ("task", "id", "prompt", "answer")
        },
    )


def _count(digits: str, where: str, least: int = 1) -> int:
    if not re.fullmatch("[0-9]{1,9}", digits) or int(digits) < least:
        raise ValueError(f"{where} has {digits!r:.40} where a count from {least} is expected")
    return int(digits)


OPTIONAL_PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cost": ("cost.json", _cost),
    "capabilities": ("capabilities.json", _capabilities),
    "margins": ("capabilities.json", _margins),
    "pass_at_k": ("pass_at_k.json", _pass_at_k),
    "answers": ("answers", _answers),
    "trajectory": ("trajectory.jsonl", read_trajectory),
}
"""Field of a run -> its file or folder, and what reads it."""
