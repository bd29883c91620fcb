"""Drops rows whose demonstration the demonstration-conditioned model finds unlikely."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from datamodules.continual import ContinualDataModule
from sdft.loss.probes import agreement
from sdft.runs.files import write_json_atomically
from sdft.tasks.tasks import Task

logger = logging.getLogger(__name__)


def drop_disagreeing(
    datamodule: ContinualDataModule, model: PreTrainedModel, report: Path, *, resumed: bool
) -> None:
    """Leave out training rows below ``min_agreement``, and write what was left out.

    Args:
        datamodule: Its tasks and plan lose the rows.
        model: The model before any training, which reads each demonstration in context.
        report: File of the rows left out, by task; a resumed run drops the rows that it lists.
        resumed: Whether the run resumes from a checkpoint.

    Raises:
        ValueError: No training row of a task is left.
    """
    if resumed and report.is_file():
        found = json.loads(report.read_text("utf-8"))
    else:
        found = {task.name: judge(datamodule, model, task) for task in datamodule.tasks}
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(report, found)
    for name, judged in found.items():
        dropped, total = len(judged["dropped"]), judged["num_rows"]
        logger.warning("task %r: dropped %d of %d training rows: %s", name, dropped, total, report)
    datamodule.drop_rows(
        {name: {row["id"] for row in judged["dropped"]} for name, judged in found.items()}
    )


def judge(datamodule: ContinualDataModule, model: PreTrainedModel, task: Task) -> dict[str, Any]:
    """The entry of one task in ``dropped.json``; rows without a demonstration are kept."""
    rows = [row for row in task.train if row.demonstration]
    found: list[float] = []
    for start in range(0, len(rows), datamodule.eval_batch_size):
        batch = datamodule.reader.train_batch(rows[start : start + datamodule.eval_batch_size])
        found += agreement(model, batch.teacher_prompts, batch.demonstrations)
    return {
        "num_rows": len(task.train),
        "min_agreement": datamodule.min_agreement,
        "mean_agreement": sum(found) / len(found) if found else None,
        "dropped": [
            {"id": row.id, "agreement": value, "demonstration": row.demonstration}
            for row, value in zip(rows, found, strict=True)
            if value < datamodule.min_agreement
        ],
    }
