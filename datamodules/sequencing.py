"""Runs the whole sequence: evaluate, train a stage, evaluate, train the next, …, test.

One Trainer runs one ``fit`` per stage, so that each has a new optimizer, schedule and loader.
A checkpoint's counters alone give the position in the run: every stage is one epoch, and a
checkpoint whose global step is a stage's first step lies between two stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Timer

from datamodules.continual import ContinualDataModule
from datamodules.filtering import drop_disagreeing
from datamodules.trainer_flags import check_flags, flag_of, shorten, without_lightning_chatter
from sdft.runs.checkpoint_files import LAST, ResumeError, read_counters
from sdft.runs.failures import StoppedEarly, UsageError
from sdft.runs.run_directory import NAMED_CHECKPOINTS, settle_run
from sdft.stages import StagePlan


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The position of a checkpoint in the run.

    Args:
        stage: The stage in training, or the next one if the checkpoint lies between two.
        in_stage: Whether that stage has begun.
        global_step: Optimizer steps taken.
    """

    stage: int
    in_stage: bool
    global_step: int

    @property
    def last_started(self) -> int:
        """The stage to restore into: the one in training, or the one just finished."""
        return self.stage if self.in_stage else max(self.stage - 1, 0)


def fit_sequence(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: ContinualDataModule,
    ckpt_path: str | Path | None = None,
) -> None:
    """Train all stages in order, evaluating every task before the first and after each.

    This replaces ``trainer.fit(module, datamodule=datamodule)``. Files go to the trainer's
    ``default_root_dir``.

    Args:
        trainer: Its ``max_epochs`` is set here; flags that would break the stages are refused.
        module: The method.
        datamodule: The tasks.
        ckpt_path: Resume from this checkpoint: a file, ``last`` or ``previous`` (those that
            StageCheckpoint writes), or ``auto`` (last, or a new run where there is none). The
            result equals an uninterrupted run's.

    Raises:
        ValueError: A flag of the trainer is not usable with stages, its processes do not share a
            batch evenly, or the checkpoint cannot be read or belongs to another sequence.
        StoppedEarly: ``trainer.should_stop`` or ``max_time`` ended a stage, or ended the run
            between two of them.
    """
    check_flags(partial(flag_of, trainer))
    max_epochs = trainer.fit_loop.max_epochs
    try:
        with without_lightning_chatter():
            _run_sequence(trainer, module, datamodule, _resolved(trainer, ckpt_path))
    finally:
        datamodule.num_stages_done = None
        trainer.fit_loop.max_epochs = max_epochs


def _run_sequence(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: ContinualDataModule,
    ckpt_path: Path | None,
) -> None:
    if datamodule.min_agreement:
        module.to(trainer.strategy.root_device)
        report = Path(trainer.default_root_dir) / "dropped.json"
        drop_disagreeing(datamodule, module.student, report, resumed=ckpt_path is not None)
    if trainer.fast_dev_run:
        shorten(trainer, datamodule)
    plan = datamodule.plan
    _check_ranks(trainer.world_size, plan.batch_size)
    num_done = plan.first_stage
    if ckpt_path is None and plan.first_stage:
        _skip_stages(trainer, plan.first_stage)
    if ckpt_path is not None:
        stage = read_resume_point(ckpt_path, plan).last_started
        # Between two stages, this only restores: the finished stage has no epoch left to run.
        _fit_stage(trainer, module, datamodule, stage, ckpt_path)
        num_done = stage + 1
    _evaluate(trainer, module, datamodule, num_done)
    for stage in range(num_done, plan.num_stages):
        stopping = _fit_stage(trainer, module, datamodule, stage, None)
        _evaluate(trainer, module, datamodule, stage + 1)
        if stopping and stage + 1 < plan.num_stages:
            raise StoppedEarly(_stopped(trainer, f"between stages {stage + 1} and {stage + 2}"))
    if any(task.test for task in datamodule.tasks):
        trainer.test(module, datamodule=datamodule, verbose=False, weights_only=True)


def _skip_stages(trainer: L.Trainer, num_stages: int) -> None:
    """Let Lightning count the stages that were trained before the run as finished epochs."""
    progress = trainer.fit_loop.epoch_progress.current
    for event in ("ready", "started", "processed", "completed"):
        setattr(progress, event, num_stages)


def _resolved(trainer: L.Trainer, ckpt_path: str | Path | None) -> Path | None:
    """The checkpoint with this name in the trainer's folder."""
    if ckpt_path not in NAMED_CHECKPOINTS:
        return None if ckpt_path is None else Path(ckpt_path)
    found = settle_run(Path(trainer.default_root_dir), str(ckpt_path), False)
    return None if found is None else Path(found)


def read_resume_point(path: Path, plan: StagePlan) -> ResumePoint:
    """Read a checkpoint's counters.

    Raises:
        ResumeError: The file is missing, truncated, not a checkpoint, or of another sequence.
    """
    counters = read_counters(path)
    stage, step = counters["epoch"], counters["global_step"]
    if stage > plan.num_stages or not (
        plan.first_step(stage) <= step <= plan.first_step(min(stage + 1, plan.num_stages))
    ):
        raise ResumeError(
            f"the checkpoint {path} was made by another sequence of tasks: it stands at stage "
            f"{stage}, step {step}; this configuration begins that stage at step "
            f"{plan.first_step(min(stage, plan.num_stages))}"
        )
    return ResumePoint(stage, step > plan.first_step(stage), step)


def _fit_stage(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: ContinualDataModule,
    stage: int,
    ckpt_path: Path | None,
) -> bool:
    """Train one stage to its end; return whether something then asks the run to stop.

    Raises:
        StoppedEarly: The stage ended early.
    """
    datamodule.stage = datamodule.num_stages_done = stage
    trainer.fit_loop.max_epochs = stage + 1
    # Evaluation happens between the stages, not inside of fit.
    limit, trainer.limit_val_batches = trainer.limit_val_batches, 0
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    finally:
        trainer.limit_val_batches = limit
    plan = datamodule.plan
    num_taken = trainer.global_step - plan.first_step(stage)
    if num_taken < plan.steps_in_stage(stage):
        where = f"in stage {stage + 1}, {plan.tasks[stage]}, after {num_taken} of its"
        raise StoppedEarly(_stopped(trainer, f"{where} {plan.steps_in_stage(stage)} steps"))
    for callback in trainer.callbacks:
        if isinstance(callback, Timer):  # it would restart with the next stage
            callback.load_state_dict(callback.state_dict())
    return bool(trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False))


def _stopped(trainer: L.Trainer, where: str) -> str:
    """The message for a run that the trainer has stopped."""
    timers = [each for each in trainer.callbacks if isinstance(each, Timer)]
    remaining = [each.time_remaining() for each in timers]
    if any(seconds is not None and seconds <= 0 for seconds in remaining):
        cause, larger = "trainer.max_time", " and a larger trainer.max_time"
    else:
        cause, larger = "trainer.should_stop", ""
    last = Path(trainer.default_root_dir) / "checkpoints" / LAST
    if not last.exists():
        return f"stopped by {cause} {where}; nothing was saved, since there is no StageCheckpoint"
    return f"stopped by {cause} {where}; resume with ckpt_path last{larger}: {last}"


def _evaluate(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: ContinualDataModule,
    num_stages_done: int,
) -> None:
    datamodule.num_stages_done = num_stages_done
    trainer.validate(module, datamodule=datamodule, verbose=False, weights_only=True)


def _check_ranks(num_ranks: int, batch_size: int) -> None:
    if batch_size % num_ranks:
        raise UsageError(
            f"data.batch_size is {batch_size}, the prompts of an optimizer step over all "
            f"processes, of which there are {num_ranks}; set it to a multiple of {num_ranks}"
        )
