"""Turns rows into token ids; all training text is tokenized here."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from datamodules.chat_options import ChatOptions
from sdft.model.chat_template import ChatTemplateError
from sdft.tasks.prompting import TeacherTemplate, TeacherView, student_messages
from sdft.tasks.tasks import Task
from sdft.types import Demonstration, DemonstrationBatch, EvaluationBatch, TokenIds

logger = logging.getLogger(__name__)


class RowTokenizer:
    """Reads rows as the student and as the teacher see them.

    Args:
        tokenizer: With a chat template and an end-of-sequence token.
        views: Task name -> what the teacher is shown of the task's rows.
        system_prompt: System message for prompts without one; None keeps the template's own.
        max_prompt_tokens: Longest prompt of student or teacher.
        overlong: ``error`` or ``drop``.
        evaluated_as: Whose prompts are answered in evaluation, ``student`` or ``teacher``.
        chat: Options of the chat template for student and teacher.

    Raises:
        ValueError: ``overlong`` or ``evaluated_as`` has another value.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        views: Mapping[str, TeacherView],
        *,
        system_prompt: str | None,
        max_prompt_tokens: int,
        overlong: str,
        evaluated_as: str,
        chat: ChatOptions | None = None,
    ) -> None:
        if overlong not in ("error", "drop"):
            raise ValueError(f"data.overlong is {overlong!r}; it must be error or drop")
        if evaluated_as not in ("student", "teacher"):
            raise ValueError(
                f"data.evaluated_as is {evaluated_as!r}; it must be student or teacher"
            )
        self._tokenizer = tokenizer
        self._use(chat or ChatOptions())
        self._end_id = int(tokenizer.eos_token_id)
        self._views = views
        self._system_prompt = system_prompt
        self._max_prompt_tokens = max_prompt_tokens
        self._overlong = overlong
        self._evaluated_as = evaluated_as

    def showing(
        self, examples: Mapping[str, Mapping[str, Sequence[Demonstration]]]
    ) -> RowTokenizer:
        """A copy that shows the teacher examples: task name -> row id -> other rows."""
        other = copy(self)
        other._views = {
            task: replace(view, examples=examples[task]) for task, view in self._views.items()
        }
        return other

    def with_template(self, name_or_path: str) -> RowTokenizer:
        """A copy whose teacher uses another prompt template."""
        other, template = copy(self), TeacherTemplate.load(name_or_path)
        other._views = {
            task: replace(view, template=template) for task, view in self._views.items()
        }
        return other

    def at(self, clock: datetime) -> RowTokenizer:
        """A copy whose chat templates see another time."""
        other = copy(self)
        other._use(replace(self.chat, clock=clock))
        return other

    def _use(self, chat: ChatOptions) -> None:
        self.chat = chat
        self.encoder = chat.encoder(self._tokenizer)
        self._teacher_encoder = chat.encoder(self._tokenizer, for_teacher=True)

    def student_prompt(self, row: Demonstration) -> TokenIds:
        """The prompt up to the assistant's turn."""
        with _named(row, "the student's prompt"):
            return self.encoder.encode_chat(student_messages(row, self._system_prompt))

    def teacher_prompt(self, row: Demonstration) -> TokenIds:
        """The prompt with the privileged information in context, up to the assistant's turn.

        A row without a demonstration is read as the student reads it.
        """
        if not row.demonstration:
            return self.student_prompt(row)
        view = self._views[row.task]
        with _named(row, "the teacher's prompt"):
            return self._teacher_encoder.encode_chat(
                view.messages(row, self._system_prompt), view.shown_demonstrations(row)
            )

    def demonstration(self, row: Demonstration) -> TokenIds:
        """The demonstration as the assistant's turn, with the token that ends it."""
        with _named(row, "the demonstration"):
            prompt = student_messages(row, self._system_prompt)
            return self.encoder.encode_reply(prompt, row.demonstration)

    def _evaluated_prompt(self, row: Demonstration) -> TokenIds:
        as_teacher = self._evaluated_as == "teacher"
        return self.teacher_prompt(row) if as_teacher else self.student_prompt(row)

    def train_batch(
        self, rows: Sequence[Demonstration], num_padding_rows: int = 0
    ) -> DemonstrationBatch:
        """Collate training rows, the last ``num_padding_rows`` of which bear no loss."""
        return DemonstrationBatch(
            rows=tuple(rows),
            student_prompts=[self.student_prompt(row) for row in rows],
            teacher_prompts=[self.teacher_prompt(row) for row in rows],
            demonstrations=[self.demonstration(row) for row in rows],
            num_padding_rows=num_padding_rows,
        )

    def evaluation_batch(self, task: Task, rows: Sequence[Demonstration]) -> EvaluationBatch:
        """Collate rows of one task for evaluation."""
        return EvaluationBatch(
            task=task.name,
            rows=tuple(rows),
            prompts=[self._evaluated_prompt(row) for row in rows],
            scorer=task.scorer,
        )

    def fitting(self, task: Task) -> Task:
        """The task with every row checked against the length limit, before any training.

        Raises:
            ValueError: A row lacks what the teacher is to be shown, a prompt is too long and
                ``overlong`` is ``error``, or no row is left.
        """
        kept = {
            split: self._fitting_rows(task, split, rows)
            for split, rows in (
                ("train", task.train),
                ("validation", task.validation),
                ("test", task.test),
            )
        }
        return replace(task, **kept)

    def _checked_prompts(self, row: Demonstration, split: str) -> dict[str, TokenIds]:
        """The prompts of a row, by who reads them."""
        prompts = {"student": self.student_prompt(row)}
        if split == "train" or self._evaluated_as == "teacher":
            prompts["teacher"] = self.teacher_prompt(row)
        if split == "train":
            self.demonstration(row)
        return prompts

    def _fitting_rows(
        self, task: Task, split: str, rows: Sequence[Demonstration]
    ) -> tuple[Demonstration, ...]:
        kept = []
        for row in rows:
            with _in_split(split):
                prompts = self._checked_prompts(row, split)
            reader, prompt = max(prompts.items(), key=lambda item: len(item[1]))
            if len(prompt) <= self._max_prompt_tokens:
                kept.append(row)
            elif self._overlong == "error":
                raise ValueError(
                    f"task {task.name!r}, {split} row {row.id!r}: the {reader}'s prompt has "
                    f"{len(prompt)} tokens, data.max_prompt_tokens is {self._max_prompt_tokens}; "
                    "raise it, or set data.overlong to drop"
                )
        if len(kept) < len(rows):
            logger.warning(
                "task %r: dropped %d of %d %s rows with prompts over %d tokens",
                task.name,
                len(rows) - len(kept),
                len(rows),
                split,
                self._max_prompt_tokens,
            )
        if rows and not kept:
            raise ValueError(
                f"task {task.name!r}: no {split} row fits data.max_prompt_tokens = "
                f"{self._max_prompt_tokens}"
            )
        return tuple(kept)


@contextmanager
def _named(row: Demonstration, what: str) -> Iterator[None]:
    """Add to the block's errors the task, the row and what is read of it."""
    try:
        yield
    except ChatTemplateError as error:
        raise ValueError(f"task {row.task!r}, row {row.id!r:.80}: {what}: {error}") from error


@contextmanager
def _in_split(split: str) -> Iterator[None]:
    """Add the split to the block's errors that name task and row."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace(", row ", f", {split} row ", 1)
        raise ValueError(message) from error
