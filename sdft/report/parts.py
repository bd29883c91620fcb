"""The parts of a run's directory that need not be there: cost, capabilities, pass@k, answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdft.report.file_values import amount, of_kind, read_json, share, text
from sdft.runs.jsonl import read_records

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


def shares(value: object, where: str) -> Shares:
    """Accuracies by name, each from 0 to 1, or None for what was not measured."""
    members = of_kind(value, dict, where).items()
    return {text(name, where): share(item, f"{name!r} in {where}") for name, item in members}


def read_cost(path: Path) -> dict[str, float | None]:
    """The sums of ``cost.json``, with seconds and operations over all phases."""
    record = read_json(path)
    seconds = of_kind(record.get("seconds"), dict, f"{path}: 'seconds'")
    operations = of_kind(record.get("operations"), dict, f"{path}: 'operations'")
    cost = {name: amount(record.get(name), f"{path}: {name!r}") for name in COUNTED}
    times = [amount(value, f"{path}: {name!r}") for name, value in seconds.items()]
    spent = [amount(operations.get(name), f"{path}: {name!r}") for name in SPENT]
    return {**cost, "seconds": total(times), "operations": total(spent)}


COUNTED = ("num_steps", "completion_tokens", "operations_vs_sft", "peak_memory_bytes")
"""Members of ``cost.json`` that are read as they are."""

SPENT = ("rollout", "teacher", "student")
"""Phases of ``operations`` that the run itself spent; ``sft`` is what SFT would have."""


def total(amounts: Sequence[float | None]) -> float | None:
    """The sum, or None if there is nothing to add or any part is missing."""
    known = [each for each in amounts if each is not None]
    return sum(known) if known and len(known) == len(amounts) else None


def read_capabilities(path: Path) -> dict[int, Shares]:
    """The score on each suite of prior capabilities, by stage."""
    rows = of_kind(read_json(path).get("rows"), list, f"{path}: 'rows'")
    result = {}
    for place, row in enumerate(rows):
        where = f"{path}: row {place}"
        stage = of_kind(of_kind(row, dict, where).get("stage"), int, f"{where}: 'stage'")
        result[stage] = shares(row.get("scores"), f"{where}: 'scores'")
    return result


def read_pass_at_k(path: Path) -> dict[str, dict[int, float | None]]:
    """Pass@k by task and k."""
    by_task = of_kind(read_json(path).get("pass_at_k"), dict, f"{path}: 'pass_at_k'")
    return {
        text(task, str(path)): {
            _count(k, f"{path}: {task!r}"): share(value, f"{path}: pass@{k} of {task!r}")
            for k, value in of_kind(by_k, dict, f"{path}: {task!r}").items()
        }
        for task, by_k in by_task.items()
    }


def read_answers(folder: Path) -> tuple[StageAnswer, ...]:
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


NUM_PROMPTS = 2
"""Prompts of every task whose answers are shown."""


def _answer(record: dict[str, Any], stage: int, where: str) -> StageAnswer:
    expected = record.get("expected")
    words = expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
    return StageAnswer(
        stage=stage,
        score=share(record.get("score"), f"{where}: 'score'"),
        expected=text(words, f"{where}: 'expected'"),
        **{name: text(record.get(name), f"{where}: {name!r}") for name in ANSWER_TEXTS},
    )


ANSWER_TEXTS = ("task", "id", "prompt", "answer")


def _count(digits: str, where: str, least: int = 1) -> int:
    if not re.fullmatch("[0-9]{1,9}", digits) or int(digits) < least:
        raise ValueError(f"{where} has {digits!r:.40} where a count from {least} is expected")
    return int(digits)


OPTIONAL_PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cost": ("cost.json", read_cost),
    "capabilities": ("capabilities.json", read_capabilities),
    "pass_at_k": ("pass_at_k.json", read_pass_at_k),
    "answers": ("answers", read_answers),
}
"""Field of a run -> its file or folder, and what reads it."""
