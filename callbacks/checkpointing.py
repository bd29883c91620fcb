"""Checkpoints that survive a kill at any instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from callbacks.sharded_checkpoint import save_in_shards

LAST = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, flushes it to disk, then moves it there.

    Lightning's own writing is atomic only where the temporary folder and the checkpoint share
    a file system, elsewhere a kill destroys the previous good file; and it holds the whole file
    in memory first.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``, all of it or nothing."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        try:
            with partial.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        partial.replace(target)


class StageCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` current and one checkpoint per finished stage.

    Args:
        every_n_steps: Optimizer steps between two writes of last.ckpt; the end of a stage is
            always written.
        keep_stages: Keep ``stage-<k>-<task>.ckpt`` of every finished stage.

    Raises:
        ValueError: ``every_n_steps`` is below 1.
    """

    def __init__(self, every_n_steps: int = 50, keep_stages: bool = True) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be at least 1")
        self.every_n_steps = every_n_steps
        self.keep_stages = keep_stages

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Write last.ckpt every n steps; the stage's last step is left to its end."""
        plan, stage = trainer.datamodule.plan, trainer.datamodule.stage
        at_end = trainer.global_step == plan.first_step(stage + 1)
        if trainer.global_step % self.every_n_steps == 0 and not at_end:
            self._save(trainer, None)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write last.ckpt and the stage's own checkpoint."""
        plan, stage = trainer.datamodule.plan, trainer.datamodule.stage
        if trainer.global_step != plan.first_step(stage + 1):
            return
        name = f"stage-{stage + 1}-{plan.tasks[stage]}.ckpt"
        self._save(trainer, name if self.keep_stages else None)

    @staticmethod
    def _save(trainer: L.Trainer, kept_name: str | None) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        last, kept = folder / LAST, None if kept_name is None else folder / kept_name
        if isinstance(trainer.strategy, ModelParallelStrategy):
            save_in_shards(trainer, last, kept)
            return
        trainer.save_checkpoint(last, weights_only=False)
        if kept is not None and trainer.is_global_zero:
            kept.unlink(missing_ok=True)
            os.link(last, kept)  # last.ckpt is replaced, never written into
