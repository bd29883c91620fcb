"""Tasks in sequence: which rows are trained now, which are evaluated, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
from transformers import PreTrainedTokenizerBase

from datamodules.tokenization import RowTokenizer
from sdft.prompting import TeacherTemplate, TeacherView
from sdft.retrieval import check_choice, choose_examples
from sdft.stages import StagePlan
from sdft.tasks import Task, TaskSpec, load_tasks
from sdft.types import Demonstration, DemonstrationBatch, EvaluationBatch


class ContinualDataModule(L.LightningDataModule):
    """Several tasks, trained one after another and evaluated together.

    Args:
        tasks: The tasks in training order.
        tokenizer: The model's tokenizer; the command line takes it from the model.
        batch_size: Prompts per optimizer step.
        epochs_per_stage: Passes over a task's training rows in its stage.
        examples_per_stage: Examples a stage draws instead of whole passes.
        eval_batch_size: Prompts answered at a time in evaluation.
        teacher_context: What the teacher is shown besides the prompt: demonstration, context (the
            row's article alone) or both; a task may name its own.
        num_demonstrations: Demonstrations the teacher is shown: the row's own, and before it
            others of the task's training rows.
        demonstration_choice: Which others: random, or retrieved (nearest by TF-IDF cosine).
        teacher_template: How the teacher is shown these: a shipped template (dialogue,
            dialogue_twice, paper, paper_short) or the path of a .jinja file.
        system_prompt: System message for prompts without one; null keeps the chat template's own.
        max_prompt_tokens: Longest prompt, of student and teacher.
        overlong: What happens to a row that is longer: error, or drop (reported).
        evaluated_as: Whose prompts are answered in evaluation: student, or teacher, with the
            article in the prompt (oracle RAG) or the demonstration (how good the teacher is).
        data_seed: Seed of generated rows and of subsets, the same in all runs to be compared.
        seed: Seed of the training order; follows seed_everything.
    """

    def __init__(
        self,
        tasks: list[TaskSpec],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int = 32,
        epochs_per_stage: int = 1,
        examples_per_stage: int | None = None,
        eval_batch_size: int = 32,
        teacher_context: str = "both",
        num_demonstrations: int = 1,
        demonstration_choice: str = "random",
        teacher_template: str = "paper",
        system_prompt: str | None = None,
        max_prompt_tokens: int = 1024,
        overlong: str = "error",
        evaluated_as: str = "student",
        data_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if tokenizer is None:
            raise ValueError("data.tokenizer is missing; pass the model's tokenizer")
        _require_positive(
            batch_size=batch_size,
            epochs_per_stage=epochs_per_stage,
            eval_batch_size=eval_batch_size,
            max_prompt_tokens=max_prompt_tokens,
            num_demonstrations=num_demonstrations,
            examples_per_stage=1 if examples_per_stage is None else examples_per_stage,
        )
        self.reader = RowTokenizer(
            tokenizer,
            _views(tasks, TeacherTemplate.load(teacher_template), teacher_context),
            system_prompt=system_prompt,
            max_prompt_tokens=max_prompt_tokens,
            overlong=overlong,
            evaluated_as=evaluated_as,
        )
        self.tasks = tuple(map(self.reader.fitting, load_tasks(tasks, data_seed)))
        self._show_examples(num_demonstrations - 1, demonstration_choice, seed)
        self.eval_batch_size = eval_batch_size
        self.plan = _plan(self.tasks, batch_size, epochs_per_stage, examples_per_stage, seed)
        # Both are set by the sequencer from the counters; None while no sequence is running.
        self.stage = 0
        self.num_stages_done: int | None = None

    def train_dataloader(self) -> StageLoader:
        """The current stage's batches."""
        rows = self.tasks[self.stage].train
        return StageLoader(
            self.plan, self.stage, lambda batch: self.reader.train_batch(rows, batch)
        )

    def val_dataloader(self) -> list[EvaluationLoader]:
        """One loader per task, in training order."""
        return [self._evaluation(task, task.validation) for task in self.tasks]

    def test_dataloader(self) -> list[EvaluationLoader]:
        """One loader per task that has test rows."""
        return [self._evaluation(task, task.test) for task in self.tasks if task.test]

    def transfer_batch_to_device(self, batch: Any, *_: Any) -> Any:
        """Batches are ragged token lists; tensors are made where a model reads them."""
        return batch

    def _show_examples(self, num_examples: int, choice: str, seed: int) -> None:
        """Show the teacher other rows too, after which a row may no longer fit."""
        check_choice(choice)
        if num_examples:
            self.reader = self.reader.showing(
                {
                    task.name: choose_examples(task.train, num_examples, choice, seed)
                    for task in self.tasks
                }
            )
            self.tasks = tuple(map(self.reader.fitting, self.tasks))

    def _evaluation(self, task: Task, rows: Sequence[Demonstration]) -> EvaluationLoader:
        return EvaluationLoader(
            rows, self.eval_batch_size, lambda batch: self.reader.evaluation_batch(task, batch)
        )


class StageLoader:
    """The batches of one stage; its state is how many it has given.

    Args:
        plan: The sequence of stages.
        stage: The stage to serve.
        collate: Makes a batch from row indices.
    """

    def __init__(
        self, plan: StagePlan, stage: int, collate: Callable[[list[int]], DemonstrationBatch]
    ) -> None:
        self._plan = plan
        self._stage = stage
        self._collate = collate
        self._num_given = 0

    def __len__(self) -> int:
        """Batches of the whole stage, those already given included."""
        return self._plan.steps_in_stage(self._stage)

    def __iter__(self) -> Iterator[DemonstrationBatch]:
        """The batches not yet given."""
        for indices in self._plan.batches(self._stage, self._num_given):
            self._num_given += 1
            yield self._collate(indices)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on with the next batch."""
        return {"stage": self._stage, "num_given": self._num_given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches a checkpoint has seen; another stage's state is ignored."""
        if state["stage"] == self._stage:
            self._num_given = state["num_given"]


class EvaluationLoader:
    """A task's rows in order, in batches."""

    def __init__(
        self,
        rows: Sequence[Demonstration],
        batch_size: int,
        collate: Callable[[Sequence[Demonstration]], EvaluationBatch],
    ) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self._collate = collate

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._rows) // self._batch_size)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """The batches, the last one maybe smaller."""
        for start in range(0, len(self._rows), self._batch_size):
            yield self._collate(self._rows[start : start + self._batch_size])


def _require_positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"data.{name} is {value}; it must be at least 1")


def _views(
    specs: Sequence[TaskSpec], template: TeacherTemplate, teacher_context: str
) -> dict[str, TeacherView]:
    return {
        spec.name: TeacherView(template, spec.teacher_context or teacher_context) for spec in specs
    }


def _plan(
    tasks: Sequence[Task],
    batch_size: int,
    epochs_per_stage: int,
    examples_per_stage: int | None,
    seed: int,
) -> StagePlan:
    num_rows = tuple(len(task.train) for task in tasks)
    return StagePlan(
        tasks=tuple(task.name for task in tasks),
        num_rows=num_rows,
        num_examples=tuple(examples_per_stage or rows * epochs_per_stage for rows in num_rows),
        batch_size=batch_size,
        seed=seed,
    )
