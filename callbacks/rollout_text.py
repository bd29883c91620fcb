"""What the student wrote, as text in TensorBoard."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from sdft.types import Rollout


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
        completions = pl_module.tokenizer.batch_decode(rollout.completions[: self.num_rows])
        table = "| prompt | demonstration | rollout |\n| --- | --- | --- |\n" + "\n".join(
            "| "
            + " | ".join(map(_cell, (row.prompt[-1]["content"], row.demonstration, text)))
            + " |"
            for row, text in zip(batch.rows, completions, strict=False)
        )
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("rollouts", table, trainer.global_step)


def _cell(text: str) -> str:
    """Text as one Markdown table cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
