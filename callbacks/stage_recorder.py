"""Where what is measured once a stage goes: a file of the run's folder, and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from sdft.runs.files import write_json_atomically


def publish(
    trainer: L.Trainer, file: str, record: Any, scalars: Mapping[str, float], num_stages_done: int
) -> None:
    """Write the whole record to ``file``, and the newest numbers at x = number of stages done."""
    if not trainer.is_global_zero:
        return
    write_json_atomically(Path(trainer.default_root_dir) / file, record)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for tag, value in scalars.items():
                logger.experiment.add_scalar(tag, value, num_stages_done)
            logger.experiment.flush()
