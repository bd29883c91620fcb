"""Builds the prompts of student and teacher as chat messages (section 3).

The student reads the prompt. The teacher reads the same prompt with privileged information in
context: the demonstration, an article, or both (appendix A.2: an article with the answer 89 %
strict accuracy, the article alone 75 %, the answer alone in between). A Jinja
template that emits chat turns puts it there,

    {% call user() %}{{ question }}{% endcall %}
    {% call assistant() %}{{ demonstration }}{% endcall %}
    {% call user() %}{{ question }}{% endcall %}

with the fields ``question`` (the last user message), ``demonstration``, ``context`` (the article)
and ``examples`` (a list of other rows, each with these three). Fields that the teacher is not shown
are empty. The turns replace the prompt's last user message; a system message and earlier turns stay
where they were. Field values are inserted, never parsed, so braces, Jinja syntax or chat markup
inside a demonstration are plain text of a turn (:mod:`sdft.tasks.encoding`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from jinja2 import StrictUndefined
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdft.types import Demonstration, Message, message_text, with_text

FIELDS = ("question", "demonstration", "context", "examples")
ROLES = ("user", "assistant", "system")
TeacherContext = Literal["demonstration", "context", "both"]
TEACHER_CONTEXTS = get_args(TeacherContext)


def student_messages(row: Demonstration, system_prompt: str | None = None) -> list[Message]:
    """The prompt alone.

    Args:
        row: The row to ask about.
        system_prompt: Added in front if the prompt has no system message of its own; None
            leaves the chat template's default in place.
    """
    messages = list(row.prompt)
    if system_prompt is not None and messages[0]["role"] not in ("system", "developer"):
        messages.insert(0, Message(role="system", content=system_prompt))
    return messages


class TeacherTemplate:
    """A checked template that puts privileged information into the teacher's context.

    Args:
        source: Jinja source that emits chat turns.
        name: Where the source came from, for error messages.

    Raises:
        ValueError: The template does not parse, uses an unknown field, has text outside of a
            turn, does not end in a user turn, or shows the teacher no demonstration or context.
    """

    def __init__(self, source: str, name: str) -> None:
        self.name, self.source = name, source
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False
        )
        try:
            unknown = find_undeclared_variables(environment.parse(source)) - {*FIELDS, *ROLES}
            self._template = environment.from_string(source)
        except Exception as error:  # nested too deeply, a number too long, …
            raise _failure(name, error) from error
        if unknown:
            raise ValueError(
                f"teacher template {name}: unknown field(s) {', '.join(sorted(unknown))}; "
                f"a template may use {', '.join(FIELDS)}"
            )
        self.check()

    @classmethod
    def load(cls, name_or_path: str) -> TeacherTemplate:
        """Load a shipped template by name, or a user's ``.jinja`` file by path."""
        shipped = shipped_templates()
        if name_or_path in shipped:
            folder = resources.files("sdft.tasks").joinpath("templates")
            return cls(folder.joinpath(f"{name_or_path}.jinja").read_text("utf-8"), name_or_path)
        path = Path(name_or_path)
        if not path.is_file():
            raise ValueError(
                f"teacher_template {name_or_path!r} is neither a shipped template "
                f"({', '.join(shipped)}) nor an existing .jinja file"
            )
        try:
            return cls(path.read_text("utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"teacher template {path}: not UTF-8 at byte {error.start}; save it as UTF-8"
            ) from error

    def messages(
        self,
        row: Demonstration,
        system_prompt: str | None = None,
        *,
        shown: str = "both",
        examples: Sequence[Demonstration] = (),
    ) -> list[Message]:
        """The prompt with the row's privileged information around the question.

        Args:
            row: The row to ask about.
            system_prompt: As for the student.
            shown: One of :data:`TEACHER_CONTEXTS`; ``both`` shows a context if there is one.
            examples: Other rows, shown the same way with their own questions.
        """
        *earlier, _ = student_messages(row, system_prompt)
        fields = _fields(row, shown) | {"examples": [_fields(each, shown) for each in examples]}
        guard = _free_character(fields)
        turns = self._turns(_guarded(fields, guard))
        return earlier + [with_text(turn, lambda text: text.replace(guard, "")) for turn in turns]

    def check(self, shown: str = "both", *, with_examples: bool = False) -> None:
        """Check the turns that the template makes.

        Raises:
            ValueError: The last turn is not the user's, a turn is empty, or what should be shown
                appears in no turn.
        """
        probe = Demonstration("", "", _asked("<question>"), "<demonstration>", "", "<context>")
        other = Demonstration("", "", _asked("<other>"), "<example>", "", "<other context>")
        turns = self.messages(probe, shown=shown, examples=[other] if with_examples else [])
        about = f"teacher template {self.name}"
        if not turns or turns[-1]["role"] != "user":
            raise ValueError(f"{about}: the last turn must be the user's")
        text = "\n".join(map(message_text, turns))
        if "<question>" not in text:
            raise ValueError(f"{about}: the question appears in no turn")
        if not any(f"<{name}>" in text for name in ("demonstration", "context")):
            raise ValueError(
                f"{about}: with teacher_context {shown}, neither the demonstration nor the context "
                "appears in any turn, so the teacher would know no more than the student"
            )
        if not all(turn["content"] for turn in turns):
            raise ValueError(
                f"{about}: with teacher_context {shown}, a turn is empty; put "
                "{% if demonstration %}…{% endif %} around it"
            )
        if with_examples and "<example>" not in text:
            raise ValueError(
                f"{about}: shows no examples, but data.num_demonstrations is above 1; loop over "
                "them with {% for example in examples %}…{{ example.demonstration }}…{% endfor %}"
            )

    def _turns(self, fields: Mapping[str, Any]) -> list[Message]:
        turns: list[Message] = []

        def turn(role: str, caller: Callable[[], str]) -> str:
            turns.append(Message(role=role, content=str(caller()).strip()))
            return ""

        roles: dict[str, Any] = {role: partial(turn, role) for role in ROLES}
        try:
            outside = self._template.render(**fields, **roles)
        except Exception as error:  # an expression can fail in any way
            raise _failure(self.name, error) from error
        if outside.strip():
            raise ValueError(
                f"teacher template {self.name}: text outside of a turn: {outside.strip()[:60]!r}; "
                "wrap it in {% call user() %}…{% endcall %}"
            )
        return turns


@dataclass(frozen=True)
class TeacherView:
    """What the teacher is shown of one task's rows, and how.

    Args:
        template: The prompt template.
        shown: One of :data:`TEACHER_CONTEXTS`.
        examples: Id of a row -> the other rows shown with it; none for absent ids.

    Raises:
        ValueError: ``shown`` is unknown, examples come without demonstrations, or the template
            is not suitable.
    """

    template: TeacherTemplate
    shown: str = "both"
    examples: Mapping[str, Sequence[Demonstration]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shown not in TEACHER_CONTEXTS:
            raise ValueError(
                f"teacher_context is {self.shown!r}; it must be one of "
                f"{', '.join(TEACHER_CONTEXTS)}"
            )
        if self.examples and self.shown == "context":
            raise ValueError(
                "num_demonstrations is above 1, but teacher_context is context, which shows no "
                "demonstration; set teacher_context to demonstration or both"
            )
        self.template.check(self.shown, with_examples=bool(self.examples))

    def shown_demonstrations(self, row: Demonstration) -> list[str]:
        """The demonstrations shown with a row, all of which the prompt must contain."""
        if self.shown == "context":
            return []
        rows = [row, *self.examples.get(row.id, ())]
        return [each.demonstration for each in rows if each.demonstration]

    def messages(self, row: Demonstration, system_prompt: str | None = None) -> list[Message]:
        """The row as the teacher reads it.

        Raises:
            ValueError: Only the context is to be shown, and the row has none.
        """
        if self.shown == "context" and row.context is None:
            raise ValueError(
                f"task {row.task!r}, row {row.id!r}: has no context, and teacher_context is "
                "context; give the row the field 'context', or set the task's teacher_context to "
                "demonstration or both"
            )
        return self.template.messages(
            row, system_prompt, shown=self.shown, examples=self.examples.get(row.id, ())
        )


def _failure(name: str, error: Exception) -> ValueError:
    return ValueError(f"teacher template {name}: {str(error) or type(error).__name__}")


def _fields(row: Demonstration, shown: str) -> dict[str, Any]:
    return {
        "question": row.question,
        "demonstration": "" if shown == "context" else row.demonstration,
        "context": "" if shown == "demonstration" else row.context or "",
    }


def _free_character(fields: Mapping[str, Any]) -> str:
    """A character that occurs in no field and that nothing strips."""
    texts = json.dumps(fields, ensure_ascii=False)
    return next(chr(code) for code in range(0xE000, 0x110000) if chr(code) not in texts)


def _guarded(fields: Mapping[str, Any], guard: str) -> dict[str, Any]:
    """The fields with a character around values that begin or end with white space.

    A template's own white space around a turn is stripped; that of a value is part of the row.
    """
    return {
        name: [_guarded(each, guard) for each in value]
        if isinstance(value, list)
        else (value if value == value.strip() else f"{guard}{value}{guard}")
        for name, value in fields.items()
    }


def _asked(question: str) -> tuple[Message, ...]:
    return (Message(role="user", content=question),)


def shipped_templates() -> list[str]:
    """Names of the templates that come with the package."""
    folder = resources.files("sdft.tasks").joinpath("templates")
    return sorted(
        entry.name.removesuffix(".jinja")
        for entry in folder.iterdir()
        if entry.name.endswith(".jinja")
    )
