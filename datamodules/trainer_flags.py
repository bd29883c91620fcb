"""Trainer flags that a sequence of stages refuses; docs/lightning.md lists all flags."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import lightning as L
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from datamodules.continual import ContinualDataModule
from sdft.runs.failures import UsageError

EVALUATED = "every task is evaluated before the first stage and after each"
# Flag -> the values that may be set, and what to use instead of others. Order matters:
# Lightning sets some flags because of earlier ones, as overfit_batches sets the limits.
REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "barebones": ((False,), "leave it: accuracies are logged, and checkpoints are written"),
    "overfit_batches": ((0.0, 0), "set num_train of the tasks, and data.epochs_per_stage"),
    "max_epochs": ((None, -1), "set data.epochs_per_stage"),
    "min_epochs": ((None, 0), "set data.epochs_per_stage"),
    "max_steps": ((-1,), "set data.examples_per_stage, which is steps times data.batch_size"),
    "min_steps": ((None,), "set data.examples_per_stage, which is steps times data.batch_size"),
    "limit_train_batches": ((None, 1.0), "set data.examples_per_stage, or num_train of the tasks"),
    "limit_val_batches": ((None, 1.0), "set num_validation of the tasks"),
    "limit_test_batches": ((None, 1.0), "set num_test of the tasks"),
    "val_check_interval": ((None, 1.0), f"leave it: {EVALUATED}"),
    "check_val_every_n_epoch": ((1,), f"leave it: {EVALUATED}"),
    "reload_dataloaders_every_n_epochs": ((0,), "leave it: every stage has a loader of its own"),
    "accumulate_grad_batches": (
        (1,),
        "set data.batch_size, with model.micro_batch_size for memory",
    ),
    "precision": (
        (None, 32, "32", "32-true", "bf16-mixed"),
        "set 32-true or bf16-mixed: weights, EMA teacher and divergences are in float32",
    ),
    "strategy": (
        (
            "auto",
            "ddp",
            "ddp_find_unused_parameters_false",
            "ddp_find_unused_parameters_true",
            "single_device",
            "SingleDeviceStrategy",
            "DDPStrategy",
            "ModelParallelStrategy",
        ),
        "set ddp, or lightning.pytorch.strategies.ModelParallelStrategy, as in configs/strategy",
    ),
}
CHATTER = ("`Trainer.fit` stopped: `max_epochs=", "\N{ELECTRIC LIGHT BULB} Tip:")
EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the teacher is, on purpose
    r"Checkpoint directory .* exists and is not empty",  # by the second stage it is
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
)
UNSET_EPOCHS = 1000  # what fit makes of None
SET_BY_FAST_DEV_RUN = (
    "max_epochs",
    "max_steps",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
)


def check_flags(value_of: Callable[[str], object]) -> None:
    """Refuse flags that would break the stages or be ignored.

    Args:
        value_of: Returns the value of a flag, given its name.

    Raises:
        UsageError: Names flag, value and what to use instead.
    """
    for flag, (allowed, instead) in REFUSED.items():
        value = value_of(flag)
        if (type(value), value) not in [(type(each), each) for each in allowed]:  # 1 is not 1.0
            raise UsageError(f"trainer.{flag} is {value}; {instead}")


def flag_of(trainer: L.Trainer, flag: str) -> object:
    """The value of a flag that the Trainer was built with."""
    if flag == "strategy":
        return _name(trainer.strategy)
    if trainer.fast_dev_run and flag in SET_BY_FAST_DEV_RUN:
        return REFUSED[flag][0][0]
    if flag == "max_epochs" and trainer.max_epochs == UNSET_EPOCHS:
        return None
    return getattr(trainer, flag, "a duration")  # Lightning has no attribute for one


def _name(strategy: Strategy) -> str:
    if isinstance(strategy, DDPStrategy) and strategy._start_method != "popen":
        return f"ddp_{strategy._start_method}"  # its processes end with each fit
    for supported in (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy):
        if isinstance(strategy, supported):
            return supported.__name__
    return type(strategy).__name__


def shorten(trainer: L.Trainer, datamodule: ContinualDataModule) -> None:
    """Make ``fast_dev_run`` a run of that many steps and evaluation batches in every stage."""
    num_steps = int(trainer.fast_dev_run)
    trainer.limit_train_batches = 1.0  # Lightning would end the run after the first stage
    trainer.fit_loop.epoch_loop.max_steps = -1
    plan = datamodule.plan
    most = num_steps * plan.batch_size
    datamodule.plan = replace(
        plan, num_examples=tuple(min(each, most) for each in plan.num_examples)
    )


@contextmanager
def without_lightning_chatter() -> Iterator[None]:
    """Hide messages that repeat at every stage and that the user need not act on."""

    def says_more(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(CHATTER)

    talker = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    talker.addFilter(says_more)
    try:
        with warnings.catch_warnings():
            for expected in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=expected)
            yield
    finally:
        talker.removeFilter(says_more)
