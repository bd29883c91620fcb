"""Checkpoints that stay readable if a run is killed at any time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from callbacks.sharded_checkpoint import save_in_shards
from sdft.runs.checkpoint_files import LAST, PREVIOUS, check_whole, write_checkpoint
from sdft.runs.files import TEMPORARY
from sdft.runs.run_settings import Settings

NEXT = f".next{TEMPORARY}"  # a whole checkpoint that is about to become last.ckpt


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it to disk, then moves it there.

    Lightning's own writing is atomic only where the temporary folder and the checkpoint share
    a file system; elsewhere, a kill destroys the previous good file. It also builds the whole file
    in memory first. Checksums are verified before a checkpoint is read.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path`` in whole or not at all."""
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Read a checkpoint after verifying its checksums."""
        check_whole(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)


class StageCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` current and one checkpoint per finished stage.

    The last.ckpt before it is kept as ``previous.ckpt``.

    Args:
        every_n_steps: Optimizer steps between two writes of last.ckpt; the end of a stage is
            always written.
        keep_stages: Keep ``stage-<k>-<task>.ckpt`` of every finished stage.
        max_checkpoints: Most checkpoints kept, last.ckpt and previous.ckpt included. Those of the
            oldest stages are deleted first; 1 keeps last.ckpt alone; null for no limit.

    Raises:
        ValueError: ``every_n_steps`` or ``max_checkpoints`` is below 1.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        keep_stages: bool = True,
        max_checkpoints: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("max_checkpoints", max_checkpoints)):
            if value is not None and value < 1:
                raise ValueError(f"checkpoint.{name} is {value}; it must be at least 1")
        self.every_n_steps = every_n_steps
        self.keep_stages = keep_stages
        self.max_checkpoints = max_checkpoints
        self.last_step: int | None = None  # the step of the newest checkpoint this process wrote

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write last.ckpt every n steps, and when something stops the run within a stage.

        The stage's last step is saved at the end of the stage instead.
        """
        stopping = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)
        due = stopping or trainer.global_step % self.every_n_steps == 0
        if due and not at_stage_end(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write last.ckpt and the stage's own checkpoint."""
        if at_stage_end(trainer):
            plan, stage = trainer.datamodule.plan, trainer.datamodule.stage
            name = f"stage-{stage + 1}-{plan.tasks[stage]}.ckpt"
            self.save(trainer, name if self.keep_stages else None)

    def save(self, trainer: L.Trainer, kept_name: str | None = None) -> None:
        """Write last.ckpt, unless this step has been saved already; called on every rank.

        Args:
            trainer: Makes the checkpoint.
            kept_name: A second name for it that later ones leave alone; None for none.
        """
        if self.last_step == trainer.global_step:
            return
        self.last_step = trainer.global_step
        folder = Path(trainer.default_root_dir) / "checkpoints"
        kept = None if kept_name is None else folder / kept_name
        if isinstance(trainer.strategy, ModelParallelStrategy):
            save_in_shards(trainer, folder / LAST, kept)
        else:
            self._save_whole(trainer, folder, kept)
        if trainer.is_global_zero and self.max_checkpoints is not None:
            self._delete_oldest(folder, self.max_checkpoints)

    def _save_whole(self, trainer: L.Trainer, folder: Path, kept: Path | None) -> None:
        """Write one file and keep the last.ckpt before it; a complete one exists at any time."""
        trainer.save_checkpoint(folder / NEXT, weights_only=False)
        if not trainer.is_global_zero:
            return
        if self.max_checkpoints != 1 and (folder / LAST).exists():
            _link(folder / LAST, folder / PREVIOUS)
        (folder / NEXT).replace(folder / LAST)
        if kept is not None:
            _link(folder / LAST, kept)

    @staticmethod
    def _delete_oldest(folder: Path, max_checkpoints: int) -> None:
        stages = sorted(folder.glob("stage-*.ckpt"), key=lambda path: int(path.name.split("-")[1]))
        num_others = len(list(folder.glob("*.ckpt"))) - len(stages)
        for path in stages[: max(0, len(stages) + num_others - max_checkpoints)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


class SettingsRecord(L.Callback):
    """Keeps in every checkpoint the settings that a resumed run must share, and logs them.

    TensorBoard's page of hyper-parameters compares runs by their final average accuracy.

    Args:
        settings: Options that alter the run, by name.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add them."""
        checkpoint["settings"] = self.settings

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log them before the first stage, and again with the outcome after the last."""
        plan, stage = trainer.datamodule.plan, trainer.datamodule.num_stages_done
        found = [trainer.callback_metrics.get(f"accuracy/{task}") for task in plan.tasks]
        measured = [float(value) for value in found if value is not None]
        for logger in trainer.loggers:
            if stage == plan.num_stages and isinstance(logger, TensorBoardLogger) and measured:
                outcome = {"hp/average_accuracy": sum(measured) / len(measured)}
                logger.log_hyperparams(self.settings, outcome)
            elif stage == plan.first_stage:
                logger.log_hyperparams(self.settings)


def at_stage_end(trainer: L.Trainer) -> bool:
    """Whether the stage's last optimizer step has been taken.

    A checkpoint of that step must wait for the stage's end: resumed from one that was made
    before, Lightning would skip it.
    """
    data = trainer.datamodule
    return trainer.global_step == data.plan.first_step(data.stage + 1)


def _link(file: Path, name: Path) -> None:
    """Give a file a second name; checkpoints are replaced, never written into."""
    temporary = name.with_name(f".{name.name}{TEMPORARY}")
    temporary.unlink(missing_ok=True)
    os.link(file, temporary)
    temporary.replace(name)
