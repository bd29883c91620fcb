"""A file of the answers in each evaluation, with further measures of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from sdft.evaluation.measures import further_measures
from sdft.model.sharding import from_all_ranks
from sdft.runs.files import write_bytes_atomically, write_json_atomically
from sdft.tasks.tasks import Task
from sdft.types import Demonstration, EvaluationBatch

Answered = tuple[str, tuple[Demonstration, ...], list[str], list[float], list[str]]
"""A batch: its task and rows, their answers, scores and whole completions."""


class AnswerLog(L.Callback):
    """Writes every answer of an evaluation with its score, and further measures of all answers.

    ``answers/stage-<k>.jsonl`` has the validation rows' answers after k stages,
    ``answers/test.jsonl`` those of the test rows. Where a thought or a stop string is not part of
    the answer, a row has the whole completion too. The ``.json`` beside each has the measures that
    the accuracy matrix does not hold: macro-F1 of labels, exact match, contains and token F1 of
    short facts, ToolAlpaca's published rule, the intents and slots of SNIPS, a judge's other rule.
    """

    def __init__(self) -> None:
        self._answered: list[Answered] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: dict[str, Any],
        batch: EvaluationBatch,
        *_: Any,
    ) -> None:
        """Collect the batch's answers."""
        found = (outputs["answers"], outputs["scores"], outputs["texts"])
        self._answered.append((batch.task, batch.rows, *found))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the answers to the validation rows."""
        self._write(trainer, f"stage-{trainer.datamodule.num_stages_done}")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the answers to the test rows."""
        self._write(trainer, "test")

    def _write(self, trainer: L.Trainer, name: str) -> None:
        answered = [each for share in from_all_ranks(self._answered) for each in share]
        self._answered = []
        if trainer.datamodule.num_stages_done is None or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "answers"
        lines = "".join(map(_lines, answered)).encode("utf-8", "backslashreplace")
        write_bytes_atomically(folder / f"{name}.jsonl", lines)
        write_json_atomically(
            folder / f"{name}.json", _measures(answered, trainer.datamodule.tasks)
        )


def _lines(answered: Answered) -> str:
    task, rows, answers, scores, texts = answered
    entries = [
        {
            "task": task,
            "id": row.id,
            "prompt": row.question,
            "expected": row.answer,
            "score": score,
            "answer": answer,
            **({} if text == answer else {"completion": text}),
        }
        for row, answer, score, text in zip(rows, answers, scores, texts, strict=True)
    ]
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _measures(answered: Sequence[Answered], tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    found = {}
    for task in tasks:
        own = [each for each in answered if each[0] == task.name]
        rows = [row for _, batch, *_ in own for row in batch]
        answers = [answer for _, _, texts, *_ in own for answer in texts]
        if rows:
            found[task.name] = further_measures(task.scorer, answers, rows)
    return found
