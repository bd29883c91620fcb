"""The run as a whole: evaluate, train a stage, evaluate, train the next, …, test.

One Trainer runs one ``fit`` per stage, so that optimizer, schedule and data start anew with each.
Where a run stands follows from a checkpoint's counters alone: every stage is one epoch, and a
checkpoint whose global step is a stage's first step lies between two stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning as L

from datamodules.continual import ContinualDataModule
from datamodules.filtering import drop_disagreeing
from sdft.runs.checkpoint_files import ResumeError, read_counters
from sdft.stages import StagePlan


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a checkpoint stands.

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

    Args:
        trainer: Its ``max_epochs`` is set here.
        module: The method.
        datamodule: The tasks.
        ckpt_path: Go on from this checkpoint; the result equals an uninterrupted run's.

    Raises:
        ValueError: The trainer limits steps in a way that breaks the stages, its processes do
            not share a batch evenly, or the checkpoint cannot be read or belongs to another
            sequence.
    """
    _check_trainer(trainer)
    if datamodule.min_agreement:
        module.to(trainer.strategy.root_device)
        report = Path(trainer.default_root_dir) / "dropped.json"
        drop_disagreeing(datamodule, module.student, report, resumed=ckpt_path is not None)
    plan = datamodule.plan
    _check_ranks(trainer.world_size, plan.batch_size)
    num_done = 0
    if ckpt_path is not None:
        stage = read_resume_point(Path(ckpt_path), plan).last_started
        # Between two stages this only restores: the finished stage has no epoch left to run.
        _fit_stage(trainer, module, datamodule, stage, ckpt_path)
        num_done = stage + 1
    _evaluate(trainer, module, datamodule, num_done)
    for stage in range(num_done, plan.num_stages):
        _fit_stage(trainer, module, datamodule, stage, None)
        _evaluate(trainer, module, datamodule, stage + 1)
    if any(task.test for task in datamodule.tasks):
        trainer.test(module, datamodule=datamodule, verbose=False, weights_only=True)


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
    ckpt_path: str | Path | None,
) -> None:
    datamodule.stage = stage
    trainer.fit_loop.max_epochs = stage + 1
    # Evaluation happens between the stages, not inside of fit.
    limit, trainer.limit_val_batches = trainer.limit_val_batches, 0
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    finally:
        trainer.limit_val_batches = limit


def _evaluate(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: ContinualDataModule,
    num_stages_done: int,
) -> None:
    datamodule.num_stages_done = num_stages_done
    trainer.validate(module, datamodule=datamodule, verbose=False, weights_only=True)


def _check_trainer(trainer: L.Trainer) -> None:
    expected = {
        "max_steps": (trainer.max_steps, -1, "data.examples_per_stage"),
        "accumulate_grad_batches": (
            trainer.accumulate_grad_batches,
            1,
            "data.batch_size, with model.micro_batch_size for memory,",
        ),
        "limit_train_batches": (trainer.limit_train_batches, 1.0, "data.examples_per_stage"),
    }
    for name, (value, default, instead) in expected.items():
        if value != default:
            raise ValueError(f"trainer.{name} is {value}; leave it and set {instead} instead")


def _check_ranks(num_ranks: int, batch_size: int) -> None:
    if batch_size % num_ranks:
        raise ValueError(
            f"data.batch_size is {batch_size}, the prompts of an optimizer step over all "
            f"processes, of which there are {num_ranks}; set it to a multiple of {num_ranks}"
        )
