"""What the student reads and what the teacher reads, as chat messages (section 3).

The student reads the prompt. The teacher reads the same prompt with the demonstration in
context. How the demonstration is put there is data: a Jinja template that emits chat turns,

    {% call user() %}{{ question }}{% endcall %}
    {% call assistant() %}{{ demonstration }}{% endcall %}
    {% call user() %}{{ question }}{% endcall %}

with the fields ``question`` (the last user message), ``demonstration`` and ``context`` (the
article, or empty). The turns replace the prompt's last user message; a system message and
earlier turns stay where they were. Field values are inserted, never parsed, so braces, Jinja
syntax or chat markup inside a demonstration are plain text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdft.types import Demonstration, Message

FIELDS = ("question", "demonstration", "context")
ROLES = ("user", "assistant", "system")


def student_messages(row: Demonstration, system_prompt: str | None = None) -> list[Message]:
    """The prompt alone.

    Args:
        row: The row to ask about.
        system_prompt: Put in front when the prompt has no system message of its own; None
            leaves the chat template's default in place.
    """
    messages = list(row.prompt)
    if system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, Message(role="system", content=system_prompt))
    return messages


class TeacherTemplate:
    """A checked template that puts a demonstration into the teacher's context.

    Args:
        source: Jinja source that emits chat turns.
        name: Where the source came from, for error messages.

    Raises:
        ValueError: The template does not parse, uses an unknown field, has text outside of a
            turn, does not end in a user turn, or shows the teacher no demonstration or context.
    """

    def __init__(self, source: str, name: str) -> None:
        self.name = name
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, keep_trailing_newline=False, autoescape=False
        )
        try:
            unknown = find_undeclared_variables(environment.parse(source)) - {*FIELDS, *ROLES}
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"teacher template {name}: {error}") from error
        if unknown:
            raise ValueError(
                f"teacher template {name}: unknown field(s) {', '.join(sorted(unknown))}; "
                f"a template may use {', '.join(FIELDS)}"
            )
        self._check()

    @classmethod
    def load(cls, name_or_path: str) -> TeacherTemplate:
        """Load a shipped template by name, or a user's ``.jinja`` file by path."""
        shipped = shipped_templates()
        if name_or_path in shipped:
            folder = resources.files("sdft").joinpath("templates")
            return cls(folder.joinpath(f"{name_or_path}.jinja").read_text("utf-8"), name_or_path)
        path = Path(name_or_path)
        if not path.is_file():
            raise ValueError(
                f"teacher_template {name_or_path!r} is neither a shipped template "
                f"({', '.join(shipped)}) nor an existing .jinja file"
            )
        return cls(path.read_text("utf-8"), str(path))

    def messages(self, row: Demonstration, system_prompt: str | None = None) -> list[Message]:
        """The prompt with the row's demonstration (and context) in front of the question."""
        *earlier, last = student_messages(row, system_prompt)
        return earlier + self._turns(last["content"], row.demonstration, row.context or "")

    def _turns(self, question: str, demonstration: str, context: str) -> list[Message]:
        turns: list[Message] = []

        def turn(role: str, caller: Callable[[], str]) -> str:
            turns.append(Message(role=role, content=str(caller()).strip()))
            return ""

        roles: dict[str, Any] = {role: partial(turn, role) for role in ROLES}
        try:
            outside = self._template.render(
                question=question, demonstration=demonstration, context=context, **roles
            )
        except (TemplateError, TypeError) as error:
            raise ValueError(f"teacher template {self.name}: {error}") from error
        if outside.strip():
            raise ValueError(
                f"teacher template {self.name}: text outside of a turn: {outside.strip()[:60]!r}; "
                "wrap it in {% call user() %}…{% endcall %}"
            )
        return turns

    def _check(self) -> None:
        probe = {field: f"<{field}>" for field in FIELDS}
        turns = self._turns(**probe)
        if not turns or turns[-1]["role"] != "user":
            raise ValueError(f"teacher template {self.name}: the last turn must be the user's")
        text = "\n".join(turn["content"] for turn in turns)
        if probe["question"] not in text:
            raise ValueError(f"teacher template {self.name}: the question appears in no turn")
        if probe["demonstration"] not in text and probe["context"] not in text:
            raise ValueError(
                f"teacher template {self.name}: neither the demonstration nor the context "
                "appears in any turn, so the teacher would know no more than the student"
            )


def shipped_templates() -> list[str]:
    """Names of the templates that come with the package."""
    folder = resources.files("sdft").joinpath("templates")
    return sorted(
        entry.name.removesuffix(".jinja")
        for entry in folder.iterdir()
        if entry.name.endswith(".jinja")
    )
