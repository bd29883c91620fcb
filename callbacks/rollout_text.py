"""Logs rollouts as text to the run's loggers."""

from __future__ import annotations

from typing import Any

import lightning as L

from callbacks.run_loggers import log_table
from sdft.types import Rollout

COLUMNS = ("prompt", "demonstration", "rollout", "what the teacher reads before it")


class RolloutText(L.Callback):
    """Logs a few rollouts beside their prompts and demonstrations.

    Args:
        every_n_steps: Optimizer steps between two logs.
        num_rows: Rollouts per log.
    """

    def __init__(self, every_n_steps: int = 10, num_rows: int = 4) -> None:
        self.every_n_steps = every_n_steps
        self.num_rows = num_rows

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Write a table of rollouts."""
        rollout: Rollout | None = pl_module.last_rollout
        if rollout is None or trainer.global_step % self.every_n_steps:
            return
        decode = pl_module.tokenizer.batch_decode
        completions = decode(rollout.completions[: self.num_rows])
        read = decode(batch.teacher_prompts[: self.num_rows])
        rows = [
            (row.question, row.demonstration, completion, prompt)
            for row, completion, prompt in zip(batch.rows, completions, read, strict=False)
        ]
        log_table(trainer, "rollouts", COLUMNS, rows)
