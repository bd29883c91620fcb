"""The base class of callbacks with one row per stage: rows, file and logging."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.run_loggers import log_stage
from sdft.runs.files import write_json_atomically


class StageRecorder(L.Callback):
    """Keeps one row per stage, in checkpoints and in a file of the run's folder.

    A subclass measures and calls :meth:`add_row`. The file is rewritten with every row, and the
    row's scalars go to the run's loggers; in TensorBoard x is the number of stages done. A resumed
    run continues from the checkpoint's rows, never from the file.
    """

    file: str  # its name in the run's folder

    def __init__(self) -> None:
        self.rows: list[Any] = []  # each with its stage and global_step

    @abstractmethod
    def record(self, module: Any, rows: Sequence[Any]) -> Any:
        """The file's content for these rows, as plain JSON values."""

    @abstractmethod
    def scalars(self, module: Any, rows: Sequence[Any]) -> Mapping[str, float]:
        """What is logged for the last of these rows."""

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's rows."""
        self.rows = list(state_dict["rows"])

    def add_row(self, trainer: L.Trainer, module: Any, row: Any) -> None:
        """Add the row, in place of all rows of this stage and later ones; write and log.

        Rows that a checkpoint brought into a folder without the file are logged too.
        """
        self.rows = [earlier for earlier in self.rows if earlier["stage"] < row["stage"]] + [row]
        record = self.record(module, self.rows)  # on every rank, so that wrong rows end all ranks
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / self.file
        first = len(self.rows) if path.exists() else 1
        write_json_atomically(path, record)
        for number in range(first, len(self.rows) + 1):
            last, scalars = self.rows[number - 1], self.scalars(module, self.rows[:number])
            log_stage(trainer, scalars, last["stage"], last["global_step"])


def stage_under_evaluation(trainer: L.Trainer) -> int | None:
    """Number of stages done, while a sequence is evaluated between two of them; else None."""
    validating = trainer.state.fn == TrainerFn.VALIDATING
    return trainer.datamodule.num_stages_done if validating else None


def labelled(module: Any, rows: Sequence[Any], definitions: Mapping[str, str]) -> dict[str, Any]:
    """The file's content: method, model, rows, and definitions of the rows' members."""
    return {
        "method": module.method_name,
        "model": module.model_name,
        "rows": list(rows),
        "definitions": dict(definitions),
    }
