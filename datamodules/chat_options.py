"""Options of the chat template for student and teacher, and digests of all templates."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from sdft.model.chat_template import THOUGHT_MARKS, prints_time
from sdft.tasks.encoding import Encoder
from sdft.tasks.prompting import TeacherTemplate
from sdft.tasks.task_spec import TaskSpec

logger = logging.getLogger(__name__)

RESERVED = {
    "messages",
    "chat_template",
    "conversation",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
    "return_tensors",
    "strftime_now",
}


@dataclass(frozen=True)
class ChatOptions:
    """Variables of the chat template, its clock, and the marks of thoughts.

    Args:
        options: Variables of the template for the student's chats.
        teacher_options: Variables that differ for the teacher's chats.
        clock: The time that the template sees; None for the machine's.
        thought_marks: What a thought begins and ends with; empty for a model without thoughts.

    Raises:
        ValueError: A variable may not be set, or there are not two marks.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    teacher_options: Mapping[str, Any] = field(default_factory=dict)
    clock: datetime | None = None
    thought_marks: tuple[str, ...] = THOUGHT_MARKS

    def __post_init__(self) -> None:
        for name, options in (
            ("chat_template_kwargs", self.options),
            ("teacher_chat_template_kwargs", self.teacher_options),
        ):
            if taken := sorted(RESERVED & options.keys()):
                raise ValueError(f"data.{name} sets {taken[0]!r}, which is set here; take it out")
        if len(self.thought_marks) not in (0, 2) or not all(self.thought_marks):
            raise ValueError(
                f"thought_marks is {list(self.thought_marks)}; give what a thought begins and ends "
                "with, such as [<think>, </think>], or [] where the model has no thoughts"
            )

    def encoder(self, tokenizer: PreTrainedTokenizerBase, *, for_teacher: bool = False) -> Encoder:
        """An encoder of the student's chats, or of the teacher's."""
        options = {**self.options, **(self.teacher_options if for_teacher else {})}
        return Encoder(
            tokenizer, options=options, clock=self.clock, thought_marks=self.thought_marks
        )


def run_clock(tokenizer: PreTrainedTokenizerBase, clock: str | None) -> datetime | None:
    """The time that the chat template sees; None if it does not use the time.

    Raises:
        ValueError: ``clock`` is not a time.
    """
    try:
        given = None if clock is None else datetime.fromisoformat(clock)
    except ValueError as error:
        raise ValueError(f"data.clock is {clock!r:.80}; write it as 2026-11-27T12:00") from error
    if not prints_time(tokenizer):
        return None
    if given is None:
        given = datetime.now().replace(microsecond=0)
        logger.warning(
            "the chat template prints the date: this run and its checkpoints keep %s; "
            "set data.clock to it for another run that trains the same weights",
            given.isoformat(),
        )
    return given


def template_digests(
    tokenizer: PreTrainedTokenizerBase, template: TeacherTemplate, tasks: Sequence[TaskSpec]
) -> dict[str, str]:
    """A short digest of each template that prompts or verdicts are made with, by name."""
    sources = {
        "chat template": json.dumps(tokenizer.chat_template),
        f"teacher template {template.name}": template.source,
        **{
            f"judge prompt of {task.name}": task.judge.source
            for task in tasks
            if task.judge is not None
        },
    }
    return {
        name: hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        for name, source in sources.items()
    }
