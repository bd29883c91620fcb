"""Small tasks as JSONL folders, for tests of the whole run."""

from __future__ import annotations

from pathlib import Path

from sdft.tasks.task_spec import TaskSpec
from tests.conftest import write_rows


def letter_rows(name: str, split: str, count: int) -> list[dict]:
    """Rows that ask for one letter."""
    return [
        {
            "id": f"{name}-{split}-{index}",
            "task": name,
            "prompt": f"{name} {split} {index}?",
            "demonstration": "abc"[index % 3],
            "answer": "abc"[index % 3],
        }
        for index in range(count)
    ]


def write_task(folder: Path, name: str, num_train: int = 6, num_test: int = 2) -> TaskSpec:
    """Write a task's three splits and return its spec."""
    for split, count in (("train", num_train), ("validation", 3), ("test", num_test)):
        write_rows(folder / name / f"{split}.jsonl", letter_rows(name, split, count))
    return TaskSpec(name=name, path=str(folder / name), scorer="exact_label")
