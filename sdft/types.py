"""The values that flow through training: rows, batches, rollouts.

Dimensions: B rows in a batch, T completion positions, V vocabulary entries, N loss-bearing
positions of a batch. Token ids stay ragged lists until a model reads them, so no padding
convention exists outside :mod:`sdft.model.modes` and :mod:`sdft.loss.hidden_states`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict


class TextPart(TypedDict):
    """A part of a turn: ``{"type": "text", "text": …}``."""

    type: str
    text: str


class Message(TypedDict):
    """One chat turn, whose content is a string or a list of text parts."""

    role: str
    content: str | list[TextPart]


def message_text(message: Message) -> str:
    """The text of a turn, with its parts concatenated."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def with_text(message: Message, change: Callable[[str], str]) -> Message:
    """Apply ``change`` to the text of a turn, or to the text of each of its parts."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": change(content)}
    return {**message, "content": [{**part, "text": change(part["text"])} for part in content]}


TokenIds = list[int]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One row of a task: a prompt and an expert's response to it (section 3: x and c).

    Args:
        id: Unique within its task.
        task: Name of the task the row belongs to.
        prompt: Chat messages the student reads; the last one is the user's.
        demonstration: The expert response; empty in rows that are only evaluated, and in training
            rows of a task that has only prompts.
        answer: Reference answer for the task's scorer: a string, or any JSON value.
        context: Text besides the demonstration that only the teacher reads, such as an article.
        meta: Any other fields of the row in its source.
    """

    id: str
    task: str
    prompt: tuple[Message, ...]
    demonstration: str
    answer: Any
    context: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The text of the last message, which is the user's."""
        return message_text(self.prompt[-1]) if self.prompt else ""


@dataclass(frozen=True, slots=True)
class DemonstrationBatch:
    """B rows with everything training reads, tokenized.

    Args:
        rows: B demonstrations, for identifiers and scoring; training does not read their text.
        student_prompts: B token-id lists: the prompt alone, up to the assistant's turn.
        teacher_prompts: B token-id lists: the prompt with the demonstration in context; the prompt
            alone where there is none.
        demonstrations: B token-id lists: the demonstration as the assistant's turn, with its
            end-of-turn token.
        num_padding_rows: Rows at the end that belong to another rank's batch: they are run, so
            that all ranks run the same number of passes, but do not contribute to the loss.
    """

    rows: tuple[Demonstration, ...]
    student_prompts: Sequence[TokenIds]
    teacher_prompts: Sequence[TokenIds]
    demonstrations: Sequence[TokenIds]
    num_padding_rows: int = 0

    def __len__(self) -> int:
        """Number of rows B."""
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class EvaluationBatch:
    """B rows of one task to answer and score.

    Args:
        task: Name of the rows' task.
        rows: B rows.
        prompts: B token-id lists, the prompts the student reads.
        scorer: Maps (completion text, row) to a score in [0, 1].
    """

    task: str
    rows: tuple[Demonstration, ...]
    prompts: Sequence[TokenIds]
    scorer: Callable[[str, Demonstration], float]

    def __len__(self) -> int:
        """Number of rows B."""
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Rollout:
    """B sampled completions.

    Args:
        completions: B token-id lists; a completion that ended by itself includes its end-of-turn
            token.
        logprobs: B lists as long as the completions: log-probability of each token under the
            distribution it was drawn from, in nats. Empty for a completion that was not drawn in
            this step, such as a demonstration.
        ended: B flags: whether the completion ended by itself within the length limit.
    """

    completions: Sequence[TokenIds]
    logprobs: Sequence[list[float]]
    ended: Sequence[bool]

    @property
    def num_tokens(self) -> int:
        """Number of completion tokens drawn in this step, over all rows."""
        return sum(map(len, self.logprobs))
