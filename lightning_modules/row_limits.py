"""Checks that the rows of a run fit its model: token ids, lengths and batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sdft.model.limits import longest_independent, num_positions, num_token_ids
from sdft.types import TokenIds

TEMPLATE_TOKENS = 64  # more than a chat template puts around an answer
SHORTER = "lower model.max_new_tokens, or data.max_prompt_tokens with data.overlong drop"


@dataclass(frozen=True, slots=True)
class Reading:
    """The token ids that a model reads of a row.

    Args:
        where: Task, split and row, for messages.
        prompt: Token ids.
        answer: Token ids of a given answer; empty for an answer that is sampled.
        num_new: Tokens that may be sampled after the prompt.
    """

    where: str
    prompt: TokenIds
    answer: TokenIds
    num_new: int

    @property
    def length(self) -> int:
        """Positions that it may need."""
        return len(self.prompt) + max(len(self.answer), self.num_new)

    def __str__(self) -> str:
        given = len(self.answer) > self.num_new
        new = f"demonstration of {len(self.answer)}" if given else f"max_new_tokens {self.num_new}"
        return f"{self.where}: a prompt of {len(self.prompt)} tokens and {new}"


def check_rows(module: Any, data: Any) -> None:
    """Refuse rows that the student, or a teacher that is another model, cannot read.

    Rows are tokenized for it only where the tokenizer has more tokens than the model, or where
    the options allow rows longer than the model's positions.

    Args:
        module: A method with its student.
        data: A data module with its tasks.

    Raises:
        ValueError: A token id without an embedding, a row that needs more positions than the model
            has, or rows so long that the model reads others differently beside them.
    """
    for model in _models(module):
        _check_rows(module, data, model)


def _models(module: Any) -> Iterator[Any]:
    """The student, and its teacher if that is not a copy of the student."""
    yield module.student
    teacher = getattr(module, "teacher", None)
    if teacher is not None and teacher.kind == "model":
        yield teacher.model


def _check_rows(module: Any, data: Any, model: Any) -> None:
    tokenizer = module.tokenizer
    count, positions = num_token_ids(model), num_positions(model)
    if max(tokenizer.get_vocab().values()) >= count:
        for reading in _readings(module, data):
            _check_ids(reading, tokenizer, count)
    bound = _upper_bound(module, data)
    independent = longest_independent(model, min(bound, positions or bound))
    if bound > independent:
        for reading in _readings(module, data):
            _check_length(reading, positions)
            _check_independence(reading, type(model).__name__, independent)


def _readings(module: Any, data: Any) -> Iterator[Reading]:
    new = module.greedy.max_new_tokens
    for task in data.tasks:
        for row in task.train:
            where = f"task {task.name!r}, train row {row.id!r}"
            batch = data.reader.train_batch([row])
            (answer,) = batch.demonstrations
            yield Reading(where, *batch.student_prompts, answer, new)
            if module.reads_teacher_prompts:
                yield Reading(where, *batch.teacher_prompts, [], new)
        for split in ("validation", "test"):
            for row in getattr(task, split):
                where = f"task {task.name!r}, {split} row {row.id!r}"
                yield Reading(where, *data.reader.evaluation_batch(task, [row]).prompts, [], new)


def _upper_bound(module: Any, data: Any) -> int:
    """An upper bound of a row's positions: a text has at most as many tokens as bytes."""
    texts = (row.demonstration or row.context or "" for task in data.tasks for row in task.train)
    longest_answer = max(len(text.encode()) for text in texts) + TEMPLATE_TOKENS
    return int(data.max_prompt_tokens + max(module.greedy.max_new_tokens, longest_answer))


def _check_ids(reading: Reading, tokenizer: Any, count: int) -> None:
    for token in (*reading.prompt, *reading.answer):
        if token >= count:
            raise ValueError(
                f"{reading.where} has token {token} ({tokenizer.convert_ids_to_tokens(token)!r}), "
                f"and the model has embeddings of {count} tokens: the tokenizer is not the "
                "model's; use the one it was trained with, or enlarge the model with "
                "resize_token_embeddings and save it"
            )


def _check_length(reading: Reading, positions: int | None) -> None:
    if positions is not None and reading.length > positions:
        raise ValueError(
            f"{reading} need {reading.length} positions, and the model has {positions} "
            f"(max_position_embeddings); {SHORTER}"
        )


def _check_independence(reading: Reading, model: str, independent: int) -> None:
    if reading.length > independent:
        raise ValueError(
            f"{reading} reach {reading.length} positions, and {model} reads a row differently "
            f"beside one of more than {independent}, because its rotary embedding follows the "
            f"longest row of a batch; {SHORTER}, or set another rope_scaling in its config.json"
        )
