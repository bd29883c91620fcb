"""Checkpoints with one file per rank, which stay readable if a run is killed at any time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lightning as L

from sdft.runs.checkpoint_files import write_shard_checksums

SLOTS = (".last-a", ".last-b")


def save_in_shards(trainer: L.Trainer, last: Path, kept: Path | None) -> None:
    """Write a checkpoint folder and point the link ``last`` to it; called on every rank.

    A link can be replaced in one step, a folder cannot, so the folder that ``last`` points to is
    never written into.

    Args:
        trainer: Its strategy writes folders.
        last: The link.
        kept: A second name for this checkpoint that later ones leave alone; None for none.
    """
    slot = last.with_name(SLOTS[last.resolve().name == SLOTS[0]])
    if trainer.is_global_zero:
        shutil.rmtree(slot, ignore_errors=True)
    trainer.strategy.barrier()
    trainer.save_checkpoint(slot, weights_only=False)  # returns once all ranks have written
    write_shard_checksums(slot, trainer.global_rank, trainer.world_size)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        link = last.with_name(f".{last.name}.partial")
        link.unlink(missing_ok=True)
        link.symlink_to(slot.name)
        link.replace(last)
        if kept is not None:
            _link_folder(slot, kept)


def _link_folder(source: Path, target: Path) -> None:
    """Hard-link the same files under another name."""
    partial = target.with_name(f".{target.name}.partial")
    for left_over in (partial, target):
        shutil.rmtree(left_over, ignore_errors=True)
    shutil.copytree(source, partial, copy_function=os.link)
    partial.replace(target)
