"""The data module of a sequence of tasks: the rows of each stage and of each evaluation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from transformers import PreTrainedTokenizerBase

from datamodules.loaders import EvaluationLoader, Share, StageLoader
from datamodules.row_options import TaskReading, check_numbers
from sdft.runs.checkpoint_files import ResumeError
from sdft.runs.run_settings import differences
from sdft.stages import Place, StagePlan
from sdft.tasks.tasks import Task, TaskSpec
from sdft.types import Demonstration, DemonstrationBatch


class ContinualDataModule(TaskReading):
    """Several tasks, trained one after another and evaluated together.

    Args:
        tasks: The tasks in training order.
        tokenizer: The model's tokenizer; the command line takes it from the model.
        batch_size: Prompts per optimizer step, over all processes together.
        epochs_per_stage: Passes over a task's training rows in its stage.
        examples_per_stage: Number of examples that a stage draws, instead of whole passes.
        replay_fraction: Number of earlier tasks' training rows added to a stage for each row of its
            own, drawn uniformly. The number of steps does not change; batches grow.
        num_trained_tasks: Number of tasks, the first ones, that ``model.pretrained`` was trained on
            before the run. They are evaluated, and may be replayed or anchored on, as in any
            sequence; training begins with the task after them.
        eval_batch_size: Prompts a process answers at a time in evaluation.
        min_agreement: Drop training rows to whose demonstration the untrained model, with the
            demonstration in context, gives a lower mean probability per token (geometric, 0 to 1);
            0 keeps all. The run's dropped.json lists the dropped rows.
        seed: Seed of the training order and of demonstrations shown at random; follows
            seed_everything.
        reading: How rows are read, as :class:`datamodules.row_options.TaskReading` has it.
    """

    def __init__(
        self,
        tasks: list[TaskSpec],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 32,
        epochs_per_stage: int = 1,
        examples_per_stage: int | None = None,
        replay_fraction: float = 0.0,
        num_trained_tasks: int = 0,
        eval_batch_size: int = 32,
        min_agreement: float = 0.0,
        seed: int = 0,
        **reading: Any,
    ) -> None:
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        budget = {"epochs_per_stage": epochs_per_stage, "examples_per_stage": examples_per_stage}
        shares = {"replay_fraction": replay_fraction, "min_agreement": min_agreement}
        check_numbers(**sizes, **budget, **shares)
        _check_stages(tasks, replay_fraction, num_trained_tasks)
        super().__init__(tasks, tokenizer, seed=seed, **reading)
        self.eval_batch_size = eval_batch_size
        self.min_agreement = min_agreement
        self.plan = StagePlan(
            tasks=tuple(task.name for task in self.tasks),
            num_rows=(),
            num_examples=(),
            batch_size=batch_size,
            seed=seed,
            replay_fraction=replay_fraction,
            first_stage=num_trained_tasks,
        )
        self._budget = (epochs_per_stage, examples_per_stage)
        self.drop_rows({})
        # Both are set by fit_sequence from the counters; None while no sequence is running.
        self.stage = num_trained_tasks
        self.num_stages_done: int | None = None

    def setup(self, stage: str) -> None:
        """Share the clock among ranks; refuse a lone ``trainer.fit``, which trains one stage.

        Raises:
            RuntimeError: No sequence is running (``stage`` is Lightning's: fit, validate, …).
        """
        if stage == "fit" and self.num_stages_done is None:
            raise RuntimeError(
                "trainer.fit(module, datamodule=data) trains one stage; for the whole sequence "
                "write: from datamodules import fit_sequence; fit_sequence(trainer, module, data)"
            )
        self._set_clock(self.trainer.strategy.broadcast(self._clock))

    def state_dict(self) -> dict[str, Any]:
        """Digests of the run's rows and templates, and its clock, for the checkpoint."""
        return {"rows": self._digests, "templates": self.template_digests, "clock": self._clock}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the run's clock, and refuse to resume with other rows or templates.

        A checkpoint may be evaluated on any rows.

        Raises:
            ResumeError: Rows or templates that the checkpoint's run knew have changed.
        """
        self._set_clock(state_dict.get("clock"))
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and (changed := differences(state_dict["rows"], self._digests)):
            raise ResumeError(
                "the data is not what the checkpoint's run had; digests of the rows in task.split "
                f"that differ: {'; '.join(changed)}. Restore it, or start a new run"
            )

        held = state_dict.get("templates", {})
        if fitting and (changed := differences(held, self.template_digests)):
            raise ResumeError(
                "a template is not what the checkpoint's run had; digests that differ: "
                f"{'; '.join(changed)}. Restore it, or start a new run"
            )

    @property
    def _clock(self) -> str | None:
        """The time that chat templates see; None if they do not use the time."""
        clock = self.reader.chat.clock
        return None if clock is None else clock.isoformat()

    def _set_clock(self, clock: str | None) -> None:
        if clock is not None and clock != self._clock:
            self.reader = self.reader.at(datetime.fromisoformat(clock))

    @cached_property
    def _digests(self) -> dict[str, dict[str, str]]:
        return {task.name: task.digests() for task in self.tasks}

    def drop_rows(self, dropped: Mapping[str, Collection[str]]) -> None:
        """Leave training rows out, before training: task -> their ids.

        Raises:
            ValueError: A task has no training row left.
        """
        epochs, examples = self._budget
        kept = []
        for task in self.tasks:
            ids = dropped.get(task.name, ())
            kept.append(replace(task, train=tuple(row for row in task.train if row.id not in ids)))
            if not kept[-1].train:
                raise ValueError(
                    f"task {task.name!r}: the teacher agrees with no demonstration as far as "
                    f"data.min_agreement = {self.min_agreement}; lower it, or look at the rows"
                )
        self.tasks = tuple(kept)
        num_rows = tuple(len(task.train) for task in self.tasks)
        num_examples = tuple(examples or rows * epochs for rows in num_rows)
        self.plan = replace(self.plan, num_rows=num_rows, num_examples=num_examples)

    def train_dataloader(self) -> StageLoader:
        """This process's shard of the current stage's batches."""
        return StageLoader(self.plan, self.stage, self._share, self._train_batch)

    def _train_batch(self, places: Sequence[Place], num_padding_rows: int) -> DemonstrationBatch:
        rows = [self.tasks[task].train[row] for task, row in places]
        return self.reader.train_batch(rows, num_padding_rows)

    def val_dataloader(self) -> list[EvaluationLoader]:
        """One loader per task, in training order."""
        return [self._evaluation(task, task.validation) for task in self.tasks]

    def test_dataloader(self) -> list[EvaluationLoader]:
        """One loader per task that has test rows."""
        return [self._evaluation(task, task.test) for task in self.tasks if task.test]

    def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
        """Batches are ragged token lists; tensors are made where a model reads them."""
        return batch

    @property
    def _share(self) -> Share:
        """This process's shard; all rows where there is only one process."""
        if self.trainer is None:
            return Share()
        return Share(self.trainer.global_rank, self.trainer.world_size)

    def _evaluation(self, task: Task, rows: Sequence[Demonstration]) -> EvaluationLoader:
        return EvaluationLoader(
            rows,
            self._share,
            self.eval_batch_size,
            lambda batch: self.reader.evaluation_batch(task, batch),
        )


def _check_stages(specs: Sequence[TaskSpec], replay_fraction: float, num_trained: int) -> None:
    """Refuse to train no task, and to mix rows with and without demonstrations in a batch."""
    if not 0 <= num_trained < max(len(specs), 1):
        raise ValueError(
            f"data.num_trained_tasks is {num_trained}, and there are {len(specs)} tasks; it must "
            f"be from 0 to {len(specs) - 1}, so that one is left to train on"
        )
    for spec in specs:
        if spec.prompts_only and replay_fraction:
            raise ValueError(
                f"task {spec.name!r} has prompts_only, and data.replay_fraction is "
                f"{replay_fraction}: stages with and without demonstrations do not mix; set it to 0"
            )
