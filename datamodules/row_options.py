"""Loads tasks, and reads and checks their rows; the order of training is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
from transformers import PreTrainedTokenizerBase

from datamodules.chat_options import ChatOptions, run_clock, template_digests
from datamodules.documents import DocumentTokenizer
from datamodules.tokenization import RowTokenizer
from sdft.model.chat_template import THOUGHT_MARKS
from sdft.tasks.prompting import TeacherContext, TeacherTemplate, TeacherView
from sdft.tasks.retrieval import DemonstrationChoice, check_choice, choose_examples
from sdft.tasks.tasks import Task, TaskSpec, load_tasks
from sdft.types import Demonstration

READERS: dict[str, type[RowTokenizer]] = {
    "demonstrations": RowTokenizer,
    "documents": DocumentTokenizer,
    "prompts": RowTokenizer,
}


class TaskReading(L.LightningDataModule):
    """Tasks, and the prompts that student and teacher read for their rows.

    Args:
        tasks: The tasks in training order.
        tokenizer: The model's tokenizer; the command line takes it from the model.
        train_on: What the method reads of training rows: demonstrations, documents (the rows'
            contexts, raw) or prompts; the command line takes it from the model.
        teacher_context: What the teacher is shown besides the prompt: demonstration, context (the
            row's article alone) or both; a task may name its own.
        num_demonstrations: Number of demonstrations the teacher is shown: the row's own, after
            those of other training rows of the task.
        demonstration_choice: Which other rows: random, or retrieved (nearest by TF-IDF cosine).
        teacher_template: The prompt template of the teacher: one that is shipped (dialogue,
            dialogue_twice, dialogue_again, paper, paper_short) or the path of a .jinja file.
        system_prompt: System message for prompts without one; null keeps the chat template's own.
        chat_template_kwargs: Variables of the chat template, such as Qwen3's enable_thinking.
        teacher_chat_template_kwargs: Variables that differ for the teacher.
        thought_marks: What the model's thoughts begin and end with. Only what follows the thought
            is scored; with an empty list, the whole completion is.
        clock: The time for chat templates that print the date, such as 2026-11-27T12:00; null for
            the time the run starts, which its checkpoints keep.
        max_prompt_tokens: Longest prompt of student or teacher.
        overlong: What to do with a row that is longer: error, or drop (with a report).
        evaluated_as: Whose prompts are answered in evaluation: student, or teacher, with the
            article in the prompt (oracle RAG) or the demonstration (how good the teacher is).
        data_seed: Seed of generated rows and of subsets; keep it the same in runs to be compared.
        seed: Seed for choosing other demonstrations; follows seed_everything.

    Raises:
        ValueError: An option or a row of a task is not usable.
    """

    def __init__(
        self,
        tasks: list[TaskSpec],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        train_on: Literal["demonstrations", "documents", "prompts"] = "demonstrations",
        teacher_context: TeacherContext = "both",
        num_demonstrations: int = 1,
        demonstration_choice: DemonstrationChoice = "random",
        teacher_template: str = "paper",
        system_prompt: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        teacher_chat_template_kwargs: dict[str, Any] | None = None,
        thought_marks: tuple[str, ...] = THOUGHT_MARKS,
        clock: str | None = None,
        max_prompt_tokens: int = 1024,
        overlong: Literal["error", "drop"] = "error",
        evaluated_as: Literal["student", "teacher"] = "student",
        data_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_numbers(max_prompt_tokens=max_prompt_tokens, num_demonstrations=num_demonstrations)
        tokenizer = _checked(tasks, train_on, tokenizer)
        self.train_on, self.max_prompt_tokens = train_on, max_prompt_tokens
        template = TeacherTemplate.load(teacher_template)
        self.template_digests = template_digests(tokenizer, template, tasks)
        kwargs = chat_template_kwargs or {}, teacher_chat_template_kwargs or {}
        chat = ChatOptions(*kwargs, run_clock(tokenizer, clock), tuple(thought_marks))
        self.reader = READERS[train_on](
            tokenizer,
            _views(tasks, template, teacher_context),
            system_prompt=system_prompt,
            max_prompt_tokens=max_prompt_tokens,
            overlong=overlong,
            evaluated_as=evaluated_as,
            chat=chat,
        )
        self.tasks: tuple[Task, ...] = tuple(map(self.reader.fitting, load_tasks(tasks, data_seed)))
        self._show_examples(num_demonstrations - 1, demonstration_choice, seed)

    def score(self, completion: str, row: Demonstration) -> float:
        """A completion's score, by the scorer of the row's task."""
        scorers = {task.name: task.scorer for task in self.tasks}
        return scorers[row.task](completion, row)

    def _show_examples(self, num_examples: int, choice: str, seed: int) -> None:
        """Show the teacher other rows too, and check again that every row fits."""
        check_choice(choice)
        if num_examples and self.train_on == "demonstrations":
            self.reader = self.reader.showing(
                {
                    task.name: choose_examples(task.train, num_examples, choice, seed)
                    for task in self.tasks
                }
            )
            self.tasks = tuple(map(self.reader.fitting, self.tasks))


COUNTS = (
    "batch_size",
    "eval_batch_size",
    "epochs_per_stage",
    "examples_per_stage",
    "max_prompt_tokens",
    "num_demonstrations",
)
RANGES = {
    **{name: (lambda value: value >= 1, "at least 1") for name in COUNTS},
    "replay_fraction": (lambda value: 0 <= value < math.inf, "0 or more"),
    "min_agreement": (lambda value: 0 <= value < 1, "in [0, 1)"),
}
"""Option of the data -> which numbers are in range, and how to say it."""


def check_numbers(**options: Any) -> None:
    """Refuse numbers out of range; other options and null pass.

    Raises:
        ValueError: Names the option and its value.
    """
    for name, (holds, expected) in RANGES.items():
        value = options.get(name)
        if value is not None and not holds(value):
            raise ValueError(f"data.{name} is {value}; it must be {expected}")


def _checked(
    specs: Sequence[TaskSpec], train_on: str, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The tokenizer; ``prompts_only`` is refused if the method needs demonstrations."""
    if tokenizer is None:
        raise ValueError("data.tokenizer is missing; pass the model's tokenizer")
    if train_on not in READERS:
        raise ValueError(f"data.train_on is {train_on}; it must be one of {', '.join(READERS)}")
    for spec in specs:
        if spec.prompts_only and train_on != "prompts":
            raise ValueError(
                f"task {spec.name!r} has prompts_only, and this method trains on {train_on}; take "
                "prompts_only out, or use a method that needs none, such as ReinvokeModule"
            )
    return tokenizer


def _views(
    specs: Sequence[TaskSpec], template: TeacherTemplate, teacher_context: str
) -> dict[str, TeacherView]:
    return {
        spec.name: TeacherView(template, spec.teacher_context or teacher_context) for spec in specs
    }
