"""Steps that were not finite: skipped, counted and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from sdft.runs.files import write_json_atomically
from sdft.types import DemonstrationBatch


class SkippedSteps(L.Callback):
    """Counts the steps skipped for a NaN or infinite loss or gradient, and saves their batches.

    Each is written to ``skipped/step-<n>.json`` in the run's folder: rows, completions, loss.
    Checkpoints hold the counts.

    Args:
        max_in_a_row: Number of consecutive skipped steps that ends the run.

    Raises:
        ValueError: ``max_in_a_row`` is below 1.
    """

    def __init__(self, max_in_a_row: int = 10) -> None:
        if max_in_a_row < 1:
            raise ValueError(f"skipped.max_in_a_row is {max_in_a_row}; it must be at least 1")
        self.max_in_a_row = max_in_a_row
        self.num_skipped = 0
        self.num_in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return {"num_skipped": self.num_skipped, "num_in_a_row": self.num_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's counts."""
        self.num_skipped, self.num_in_a_row = state_dict["num_skipped"], state_dict["num_in_a_row"]

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: DemonstrationBatch,
        batch_idx: int,
    ) -> None:
        """Count and save a skipped step; end the run after too many of them."""
        if not pl_module.step_skipped:
            self.num_in_a_row = 0
            return
        self.num_skipped += 1
        self.num_in_a_row += 1
        pl_module.log("train/skipped_steps", float(self.num_skipped), batch_size=len(batch))
        folder = Path(trainer.default_root_dir) / "skipped"
        name = f"step-{trainer.global_step}" + (
            f"-rank-{rank}" if (rank := trainer.global_rank) else ""
        )
        write_json_atomically(
            folder / f"{name}.json", _record(trainer, pl_module, batch, float(outputs["loss"]))
        )
        if self.num_in_a_row >= self.max_in_a_row:
            raise FloatingPointError(
                f"loss or gradient was not finite in {self.num_in_a_row} steps in a row, the last "
                f"of them step {trainer.global_step}; their batches are in {folder}. Look at them, "
                "lower model.learning_rate, or allow more with --skipped.max_in_a_row"
            )


def _record(
    trainer: L.Trainer, module: L.LightningModule, batch: DemonstrationBatch, loss: float
) -> dict[str, Any]:
    """A skipped step as JSON; the loss is text, since JSON has no NaN."""
    rollout = module.last_rollout
    completions = (
        module.tokenizer.batch_decode(rollout.completions) if rollout else [None] * len(batch)
    )
    return {
        "global_step": trainer.global_step,
        "task": trainer.datamodule.plan.tasks[trainer.datamodule.stage],
        "loss": str(loss),
        "rows": [
            {
                "id": row.id,
                "prompt": list(row.prompt),
                "demonstration": row.demonstration,
                "context": row.context,
                "completion": completion,
            }
            for row, completion in zip(batch.rows, completions, strict=True)
        ],
    }
