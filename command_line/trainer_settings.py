"""Prepares the Trainer's flags before the Trainer is built."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from pydoc import locate
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import _InstantiatorFn
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from callbacks import (
    DriftTracker,
    InContextCheck,
    OpeningRates,
    RolloutText,
    SkippedSteps,
    StageCheckpoint,
    StageExport,
    StageProgressBar,
    TrajectoryTracker,
)
from datamodules import check_flags

# Callbacks of every run, by the key of their options.
CALLBACKS = {
    "checkpoint": StageCheckpoint,
    "export": StageExport,
    "rollouts": RolloutText,
    "skipped": SkippedSteps,
    "preambles": OpeningRates,
    "in_context": InContextCheck,
    "drift": DriftTracker,
    "trajectory": TrajectoryTracker,
}
# Loggers whose own default would hide their files: class -> name and version in the run's folder.
PLACES = {TensorBoardLogger: ("tensorboard", ""), CSVLogger: ("csv", None)}
LIGHTNINGS_NAME = "lightning_logs"


def check_trainer(trainer: Namespace) -> None:
    """Refuse flags that would break the stages or be ignored, before anything is loaded.

    Raises:
        ValueError: Names flag, value and what to use instead.
    """
    if trainer.default_root_dir is not None:
        raise ValueError(f"trainer.default_root_dir is {trainer.default_root_dir}; set --run_dir")

    def value_of(flag: str) -> object:
        value = trainer.get(flag)
        return value.class_path.rpartition(".")[2] if isinstance(value, Namespace) else value

    check_flags(value_of)


def settle_loggers(trainer: Namespace, run_dir: Path, resumed_step: int | None) -> None:
    """Point every logger to the run's folder; TensorBoard is the default logger.

    A relative ``save_dir`` is relative to that folder.

    Args:
        trainer: The Trainer's options; changed in place.
        run_dir: The run's folder.
        resumed_step: Steps of the checkpoint that the run resumes from; None for a new run.
    """
    if trainer.logger is True or trainer.logger is None:
        path = f"{TensorBoardLogger.__module__}.{TensorBoardLogger.__name__}"
        trainer.logger = [Namespace(class_path=path, init_args=Namespace(save_dir="."))]
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    for logger in loggers:
        if isinstance(logger, Namespace):
            _settle_logger(logger, run_dir, resumed_step)


def _settle_logger(logger: Namespace, run_dir: Path, resumed_step: int | None) -> None:
    kind: Any = locate(logger.class_path)
    options = logger.get("init_args", Namespace())  # a class without options has none
    if options.get("save_dir") is not None:
        options.save_dir = str(run_dir / Path(options.save_dir).expanduser())
    if kind in PLACES and options.get("name", LIGHTNINGS_NAME) == LIGHTNINGS_NAME:
        options.name, version = PLACES[kind]
        if options.get("version") is None:
            options.version = version
    if kind is TensorBoardLogger:
        options.default_hp_metric = False
        if resumed_step is not None:  # drops what a killed run logged after its last checkpoint
            options.purge_step = resumed_step + 1


def suited_callbacks(callbacks: Iterable[L.Callback], trainer: dict[str, Any]) -> list[L.Callback]:
    """The callbacks, without those of ours that a Trainer flag turns off.

    Args:
        callbacks: Those of the user and of the command line.
        trainer: The Trainer's arguments.
    """
    callbacks = list(callbacks)
    unwanted: list[type] = []
    bars = [each for each in callbacks if isinstance(each, ProgressBar)]
    if trainer.get("enable_progress_bar") is False or any(
        not isinstance(bar, StageProgressBar) for bar in bars
    ):
        unwanted.append(StageProgressBar)
    if trainer.get("enable_checkpointing") is False or trainer.get("fast_dev_run"):
        unwanted.append(StageCheckpoint)
    if trainer.get("fast_dev_run"):
        unwanted.append(StageExport)
    if not trainer.get("logger"):
        unwanted.append(LearningRateMonitor)
    return [each for each in callbacks if not isinstance(each, tuple(unwanted))]


class ModuleMaker(_InstantiatorFn):
    """Makes the module; where a strategy shards it, without weights: each rank reads its shards."""

    def __call__(self, *args: Any, applied_instantiation_links: Any, **kwargs: Any) -> Any:
        """The module, on the meta device if it will be sharded."""
        strategy = self.cli.config[self.cli.config.subcommand].trainer.strategy
        sharded = "ModelParallelStrategy" in str(strategy)
        with torch.device("meta") if sharded else nullcontext():
            return super().__call__(
                *args, applied_instantiation_links=applied_instantiation_links, **kwargs
            )
