"""The same prompts answered at every stage, as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from sdft.files import write_text_atomically
from sdft.types import EvaluationBatch


class StageRollouts(L.Callback):
    """Keeps the greedy rollouts of every task's first validation prompts, at every stage.

    Each evaluation of the sequence adds its lines to ``rollouts.jsonl``, beside the prompt, the
    demonstration and the score. Checkpoints hold the lines: a resumed run goes on from them, never
    from the file. In a distributed run the prompts are those of the first process.

    Args:
        num_rows: Prompts of every task.

    Raises:
        ValueError: ``num_rows`` is below 1.
    """

    def __init__(self, num_rows: int = 2) -> None:
        if num_rows < 1:
            raise ValueError(f"stage_rollouts.num_rows is {num_rows}; it must be at least 1")
        self.num_rows = num_rows
        self.lines: list[dict[str, Any]] = []
        self._fresh: dict[str, list[dict[str, Any]]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The lines so far."""
        return {"lines": self.lines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's lines."""
        self.lines = list(state_dict["lines"])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget what an evaluation outside of the sequence left."""
        self._fresh = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: dict[str, list[Any]],
        batch: EvaluationBatch,
        *_: Any,
    ) -> None:
        """Take the batch's first answers, as long as the task needs some.

        Args:
            trainer: Knows the stage.
            pl_module: The module that answered.
            outputs: ``answers`` and ``scores`` of the rows.
            batch: The rows.
        """
        taken = self._fresh.setdefault(batch.task, [])
        wanted = self.num_rows - len(taken)
        answered = zip(batch.rows, outputs["answers"], outputs["scores"], strict=True)
        for row, completion, score in list(answered)[:wanted]:
            taken.append(
                {
                    "stage": trainer.datamodule.num_stages_done,
                    "task": row.task,
                    "id": row.id,
                    "prompt": row.prompt[-1]["content"],
                    "demonstration": row.demonstration,
                    "completion": completion,
                    "score": score,
                }
            )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the file; lines of this stage and later ones are replaced."""
        stage = trainer.datamodule.num_stages_done
        if trainer.state.fn != TrainerFn.VALIDATING or stage is None:
            return
        fresh = [line for lines in self._fresh.values() for line in lines]
        self.lines = [line for line in self.lines if line["stage"] < stage] + fresh
        if trainer.is_global_zero:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines)
            write_text_atomically(Path(trainer.default_root_dir) / "rollouts.jsonl", text)
