"""Records the accuracy matrix of a sequence of tasks, and the metrics of retention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.run_loggers import log_figure
from callbacks.stage_recorder import StageRecorder, stage_under_evaluation
from sdft.evaluation.figures import accuracy_heatmap, forgetting_curves, png_bytes, retention_figure
from sdft.evaluation.retention_record import (
    HeldOutScores,
    RetentionRecord,
    StageRow,
    format_matrix,
    matrix_from_rows,
    retention_record,
    rounded,
    stage_row,
)
from sdft.runs.files import write_bytes_atomically, write_json_atomically
from sdft.stages import StagePlan


@runtime_checkable
class SequencedData(Protocol):
    """What the tracker reads of the data module.

    ``num_stages_done`` is the number of complete stages while a sequence is being evaluated, and
    None when someone validates or tests outside of one.
    """

    plan: StagePlan
    num_stages_done: int | None


@runtime_checkable
class NamedMethod(Protocol):
    """What the tracker reads of the module."""

    method_name: str
    model_name: str


class RetentionTracker(StageRecorder):
    """Collects every task's accuracy before training and after each stage.

    Each evaluation of the sequence (``trainer.validate``) adds a row to the accuracy matrix. The
    rows go to ``retention.json`` and ``retention.png`` in the trainer's ``default_root_dir`` and
    to the run's loggers; in TensorBoard x is the number of stages done. Test accuracies join
    ``retention.json``. Checkpoints hold the rows: a resumed run continues from them, never from
    the files. Evaluations outside a sequence are ignored: they cannot overwrite a run's results.
    """

    file = "retention.json"

    def __init__(self) -> None:
        super().__init__()
        self.test: HeldOutScores | None = None
        self._tasks: tuple[str, ...] = ()
        self._log_dirs_with_layout: set[str] = set()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's rows."""
        super().load_state_dict(state_dict)
        self.test = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check that there is a sequence to record (``stage`` is Lightning's: fit, validate, …)."""
        if not isinstance(trainer.datamodule, SequencedData):
            raise TypeError(
                "RetentionTracker needs a data module with plan and num_stages_done, such as "
                f"ContinualDataModule, got {type(trainer.datamodule).__name__}"
            )
        if not isinstance(pl_module, NamedMethod):
            raise TypeError(
                f"RetentionTracker needs method_name and model_name on {type(pl_module).__name__}"
            )
        self._tasks = trainer.datamodule.plan.tasks

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the row, replacing it and all later ones if it was measured before."""
        stage = stage_under_evaluation(trainer)
        if stage is None:
            return
        accuracy = self._published(trainer, "accuracy")
        self.test = None
        if trainer.is_global_zero:
            self._write_layouts(trainer)
        row = stage_row(self._tasks, stage, trainer.global_step, accuracy)
        self.add_row(trainer, pl_module, row)
        if trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the accuracies on the test rows to ``retention.json``."""
        if trainer.datamodule.num_stages_done is None:
            return
        accuracy = self._published(trainer, "test_accuracy")
        self.test = {
            "accuracy": {task: rounded(accuracy[task]) for task in self._tasks},
            "global_step": trainer.global_step,
        }
        if trainer.is_global_zero:
            write_json_atomically(_json_path(trainer), self.record(pl_module, self.rows))

    def table(self) -> str:
        """The accuracy matrix as text, with the test rows once they have been scored."""
        return format_matrix(self._tasks, self.rows, self.test)

    def _published(self, trainer: L.Trainer, prefix: str) -> dict[str, float | None]:
        """What the module logged as ``<prefix>/<task>``; None for tasks it did not score."""
        logged = {task: trainer.callback_metrics.get(f"{prefix}/{task}") for task in self._tasks}
        if all(value is None for value in logged.values()):
            raise ValueError(
                f"the module logged {prefix}/<task> for none of {list(self._tasks)}; log it in "
                f"on_{'test' if prefix.startswith('test') else 'validation'}_epoch_end"
            )
        return {task: None if value is None else float(value) for task, value in logged.items()}

    def record(self, module: NamedMethod, rows: Sequence[StageRow]) -> RetentionRecord:
        """The content of ``retention.json``."""
        return retention_record(module.method_name, module.model_name, self._tasks, rows, self.test)

    def scalars(self, module: NamedMethod, rows: Sequence[StageRow]) -> dict[str, float]:
        """The last row and the metrics derived from it; nothing where nothing was measured."""
        record = self.record(module, rows)
        scalars = {
            **{f"accuracy/{task}": value for task, value in rows[-1]["accuracy"].items()},
            **{f"forgetting/{task}": value for task, value in record["forgetting"].items()},
            "retention/average_accuracy": record["average_accuracy"],
            "retention/backward_transfer": record["backward_transfer"],
            "retention/forward_transfer": record["forward_transfer"],
        }
        return {tag: value for tag, value in scalars.items() if value is not None}

    def _draw(self, trainer: L.Trainer, module: NamedMethod) -> None:
        matrix = matrix_from_rows(self._tasks, self.rows)
        figure = png_bytes(retention_figure(self._tasks, matrix, _title(trainer, module)))
        write_bytes_atomically(_json_path(trainer).with_suffix(".png"), figure)
        place = (self.rows[-1]["stage"], self.rows[-1]["global_step"])
        log_figure(trainer, "retention/curves", forgetting_curves(self._tasks, matrix), *place)
        log_figure(trainer, "retention/matrix", accuracy_heatmap(self._tasks, matrix), *place)

    def _write_layouts(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._write_layout(logger)

    def _write_layout(self, logger: TensorBoardLogger) -> None:
        """Write charts that overlay all tasks, once per log directory."""
        if logger.log_dir in self._log_dirs_with_layout:
            return
        self._log_dirs_with_layout.add(logger.log_dir)
        charts = {"accuracy": ["Multiline", [_pattern("accuracy", task) for task in self._tasks]]}
        if forgettable := self._tasks[:-1]:
            charts["forgetting"] = [
                "Multiline",
                [_pattern("forgetting", task) for task in forgettable],
            ]
        logger.experiment.add_custom_scalars({"retention": charts})


def _json_path(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "retention.json"


def _pattern(prefix: str, task: str) -> str:
    """A custom-scalars chart names its lines by regular expressions."""
    return f"^{re.escape(f'{prefix}/{task}')}$"


def _title(trainer: L.Trainer, module: NamedMethod) -> str:
    """Method, model, settings and seed."""
    plan, rate = trainer.datamodule.plan, getattr(module, "learning_rate", None)
    settings = [] if rate is None else [f"learning rate {rate:g}"]
    settings += [f"batch size {plan.batch_size}", f"seed {plan.seed}"]
    return ", ".join([module.method_name, module.model_name, *settings])
