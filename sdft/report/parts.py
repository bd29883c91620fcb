"""The parts of a run's directory that need not be there: cost, capabilities, pass@k, rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdft.jsonl import read_records
from sdft.report.reading import amount, of_kind, read_json, share, text

Shares = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class StageAnswer:
    """One validation prompt, answered greedily at one point of the sequence."""

    stage: int
    task: str
    id: str
    prompt: str
    demonstration: str
    completion: str
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
    return {
        text(task, str(path)): {
            _count(k, f"{path}: {task!r}"): share(value, f"{path}: pass@{k} of {task!r}")
            for k, value in of_kind(by_k, dict, f"{path}: {task!r}").items()
        }
        for task, by_k in read_json(path).items()
    }


def read_rollouts(path: Path) -> tuple[StageAnswer, ...]:
    """The lines of ``rollouts.jsonl``."""
    return tuple(
        StageAnswer(
            stage=of_kind(record.get("stage"), int, f"{where}: 'stage'"),
            score=share(record.get("score"), f"{where}: 'score'"),
            **{name: text(record.get(name), f"{where}: {name!r}") for name in ANSWER_TEXTS},
        )
        for where, record in read_records(path)
    )


ANSWER_TEXTS = ("task", "id", "prompt", "demonstration", "completion")


def _count(k: str, where: str) -> int:
    if not k.isdecimal() or int(k) < 1:
        raise ValueError(f"{where} has the key {k!r:.40}; the keys of pass@k are counts from 1")
    return int(k)


OPTIONAL_PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "cost": ("cost.json", read_cost),
    "capabilities": ("capabilities.json", read_capabilities),
    "pass_at_k": ("pass_at_k.json", read_pass_at_k),
    "answers": ("rollouts.jsonl", read_rollouts),
}
"""Field of a run -> its file and what reads it."""
