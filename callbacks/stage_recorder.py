"""Where what is measured once a stage goes: a file of the run's folder, and the loggers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from callbacks.run_loggers import log_stage
from sdft.runs.files import write_json_atomically


def publish(
    trainer: L.Trainer, file: str, record: Any, scalars: Mapping[str, float], num_stages_done: int
) -> None:
    """Write the whole record to ``file``, and log the newest numbers."""
    if not trainer.is_global_zero:
        return
    write_json_atomically(Path(trainer.default_root_dir) / file, record)
    log_stage(trainer, scalars, num_stages_done, trainer.global_step)
