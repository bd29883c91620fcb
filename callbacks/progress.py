"""A progress bar that says which task is being learned."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class StageProgressBar(TQDMProgressBar):
    """Lightning's bar, labelled with stage and task; in evaluation, with the task being scored."""

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Label the bar with stage and task."""
        super().on_train_epoch_start(trainer)
        plan, stage = trainer.datamodule.plan, trainer.datamodule.stage
        self.train_progress_bar.set_description(
            f"Stage {stage + 1}/{plan.num_stages} {plan.tasks[stage]}"
        )

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *args: Any
    ) -> None:
        """Label the bar with the task being scored."""
        super().on_validation_batch_start(trainer, pl_module, batch, *args)
        self.val_progress_bar.set_description(f"Evaluating {batch.task}")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Drop the version number, which is of no use here."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def init_validation_tqdm(self) -> Tqdm:
        """The evaluation bar stays on screen once, after all tasks."""
        bar = super().init_validation_tqdm()
        bar.leave = False
        return bar
