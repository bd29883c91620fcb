"""Every stage's student as a plain transformers directory."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from sdft.model.pretrained import save_model


class StageExport(L.Callback):
    """Writes ``exports/stage-<k>-<task>/`` when a stage ends.

    The directory holds safetensors weights, configuration and tokenizer, for
    ``AutoModelForCausalLM.from_pretrained`` and pipelines.

    Args:
        enabled: Write the exports; off saves the disk space of one model per stage.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the student, all of it or nothing."""
        plan, stage = trainer.datamodule.plan, trainer.datamodule.stage
        if not self.enabled or trainer.global_step != plan.first_step(stage + 1):
            return
        folder = Path(trainer.default_root_dir) / "exports"
        target = folder / f"stage-{stage + 1}-{plan.tasks[stage]}"
        save_model(pl_module.student, pl_module.tokenizer, target, trainer.global_rank)
