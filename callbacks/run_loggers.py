"""Writes to the run's loggers what callbacks measure: scalars, figures and texts.

Scalars go to every logger. Figures and texts go to TensorBoard, MLflow, and loggers with
Lightning's ``log_image`` and ``log_text``, such as Weights & Biases and ``TrackioLogger``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from matplotlib.figure import Figure


def log_stage(
    trainer: L.Trainer, scalars: Mapping[str, float], num_stages_done: int, global_step: int
) -> None:
    """Log scalars that are measured once per stage.

    In TensorBoard x is the number of stages done. Other loggers have one x for everything, the
    optimizer steps taken, and ``stages_done`` beside the scalars.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for tag, value in scalars.items():
                logger.experiment.add_scalar(tag, value, num_stages_done)
            logger.experiment.flush()
        else:
            others = {**scalars, "stages_done": float(num_stages_done)}
            logger.log_metrics(others, step=global_step)
            logger.save()


def log_figure(
    trainer: L.Trainer, tag: str, figure: Figure, num_stages_done: int, global_step: int
) -> None:
    """Log a figure of a stage to each logger that takes figures."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, num_stages_done, close=False)
            logger.experiment.flush()
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_figure(logger.run_id, figure, f"{tag}-{num_stages_done}.png")
        elif hasattr(logger, "log_image"):
            logger.log_image(key=tag, images=[figure], step=global_step)


def log_table(
    trainer: L.Trainer, tag: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Log rows of text to each logger that takes text, at the current optimizer step."""
    lines = [list(columns), ["---"] * len(columns), *(map(_cell, row) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, table, trainer.global_step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, table, f"{tag}-{trainer.global_step}.md")
        elif hasattr(logger, "log_text"):
            logger.log_text(tag, columns=list(columns), data=list(map(list, rows)))


def _cell(text: str) -> str:
    """Text as one Markdown table cell."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
