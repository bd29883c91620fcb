"""Exports each stage's student as a plain transformers directory."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from sdft.model.lora import save_adapters
from sdft.model.pretrained import save_model
from sdft.report.model_card import write_model_card


class StageExport(L.Callback):
    """Writes ``exports/stage-<k>-<task>/`` when a stage ends.

    The directory holds safetensors weights, configuration and tokenizer, for
    ``AutoModelForCausalLM.from_pretrained`` and pipelines. Where adapters were trained, they are
    merged into these weights, and also saved by themselves in the folder ``adapter`` for peft.

    Args:
        enabled: Write the exports; off saves the disk space of one model per stage.
        card: Write a model card beside each export: method, tasks, accuracies, how to reproduce.
    """

    def __init__(self, enabled: bool = True, card: bool = True) -> None:
        self.enabled = enabled
        self.card = card

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the student; an interrupted export leaves nothing behind."""
        plan, stage = trainer.datamodule.plan, trainer.datamodule.stage
        if not self.enabled or trainer.global_step != plan.first_step(stage + 1):
            return
        folder = Path(trainer.default_root_dir) / "exports"
        target = folder / f"stage-{stage + 1}-{plan.tasks[stage]}"
        save_model(pl_module.student, pl_module.tokenizer, target, trainer.global_rank)
        adapter = target / "adapter"
        save_adapters(pl_module.student, pl_module.model_name, adapter, trainer.global_rank)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rewrite the cards: retention has a new row."""
        self._write_cards(trainer)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rewrite the cards: retention has the accuracies on test rows."""
        self._write_cards(trainer)

    def _write_cards(self, trainer: L.Trainer) -> None:
        run = Path(trainer.default_root_dir)
        measured = (run / "retention.json").is_file() and (run / "config.yaml").is_file()
        if not (self.card and measured and trainer.is_global_zero):
            return
        for stage, task in enumerate(trainer.datamodule.plan.tasks, start=1):
            export = run / "exports" / f"stage-{stage}-{task}"
            if export.is_dir():
                write_model_card(run, export, stage)
