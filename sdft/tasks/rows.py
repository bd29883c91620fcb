"""Checks rows against the schema and turns them into :class:`Demonstration` values.

A row has ``prompt`` (a string, or chat messages whose last is the user's), ``demonstration``,
``answer``, and optionally ``id``, ``context``, ``meta`` and ``task``. ``messages``, a chat that
ends with the assistant's reply, stands for the first three. The same checks hold for rows of a file
and of a hub data set. A row without an id is named after its split and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from sdft.runs.jsonl import check_json
from sdft.tasks.columns import mapped
from sdft.tasks.row_files import as_fields, is_table, read_file
from sdft.types import Demonstration, Message, TextPart, message_text

CHAT = "messages"
FIELDS = ("id", "task", "prompt", "demonstration", "answer", "context", "meta", CHAT)
ROLES = ("system", "developer", "user", "assistant", "tool")
INSTRUCTING_ROLES = ("system", "developer")
MESSAGE_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id"}


def read_rows(
    path: Path,
    task: str,
    *,
    needs_demonstration: bool,
    needs_answer: bool = True,
    context_field: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Demonstration]:
    """Read and check all rows of a file.

    Args:
        path: The file, in any format of :mod:`sdft.tasks.row_files`.
        task: The name the rows get, whatever their own ``task`` says.
        needs_demonstration: Whether an empty or absent demonstration is an error, as it is in
            training rows.
        needs_answer: Whether an absent answer is an error, as it is in all rows that are scored.
        context_field: Dotted path of the value that becomes the row's context, such as
            ``meta.document``; None takes the field ``context``.
        columns: Field -> column or Jinja template; None takes the columns of these names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row breaks the schema, two rows have one id, or there are no rows. The
            message names file, line and field.
    """
    rows = []
    first_place: dict[str, str] = {}
    for where, record in read_file(path):
        if columns is not None:
            record = mapped(record, columns, where)
        if columns is not None or is_table(path):
            record = as_fields(record, FIELDS)
        record = {
            "id": f"{path.name.split('.')[0]}-{where.rpartition(':')[2].split()[-1]}",
            **record,
        }
        check_fields(record, where)
        if context_field is not None:
            record = {**record, "context": _value_at(record, context_field, where)}
        if not needs_answer:
            record = {"answer": "none", **record}
        row = row_from(record, task, where, needs_demonstration=needs_demonstration)
        if row.id in first_place:
            raise ValueError(
                f"{where}: field 'id': {row.id!r:.80} is also the id of {first_place[row.id]}; "
                "ids must be unique within a split"
            )
        first_place[row.id] = where
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: has no rows; write at least one")
    return rows


def row_from(
    record: Mapping[str, Any], task: str, where: str, *, needs_demonstration: bool
) -> Demonstration:
    """Check one record and make it a row.

    Args:
        record: Field -> value.
        task: The name the row gets.
        where: The record's place, for errors.
        needs_demonstration: Whether an empty or absent demonstration is an error.

    Raises:
        ValueError: The record breaks the schema; the message names place and field.
    """
    check_fields(record, where)
    if CHAT in record:
        record = _from_chat(record, where)
    if not needs_demonstration:
        record = {"demonstration": "", **record}
    return Demonstration(
        id=_text({**record, "id": _named(record.get("id"))}, "id", where),
        task=task,
        prompt=_prompt(_present(record, "prompt", where), f"{where}: field 'prompt'"),
        demonstration=_text(record, "demonstration", where, may_be_empty=not needs_demonstration),
        answer=_answer(record, where),
        context=None if record.get("context") is None else _text(record, "context", where),
        meta=_meta(record, where),
    )


def _from_chat(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A chat as a row: the last reply is the demonstration, what precedes it is the prompt.

    The reply is also the reference answer of a row that has none.
    """
    if twice := [name for name in ("prompt", "demonstration") if name in record]:
        raise ValueError(f"{where}: there are both {CHAT!r} and {twice[0]!r}; keep one of them")
    turns, about = record[CHAT], f"{where}: field {CHAT!r}"
    if not isinstance(turns, list) or len(turns) < 2:
        raise ValueError(f"{about}: {turns!r:.80} is not a list of messages with a reply")
    last = _message(turns[-1], f"{about}, message {len(turns)}")
    if last["role"] != "assistant":
        raise ValueError(
            f"{about}: the last message is the {last['role']}'s; it must be the assistant's, whose "
            "text is the demonstration"
        )
    if "tool_calls" in last:
        raise ValueError(
            f"{about}: the last message has 'tool_calls', and a demonstration is text: write the "
            "calls in its 'content', as the model is to write them"
        )
    others = {name: value for name, value in record.items() if name != CHAT}
    reply = message_text(last)
    return {"answer": reply, **others, "prompt": turns[:-1], "demonstration": reply}


def _named(number: Any) -> Any:
    """An id as text; numbers are accepted."""
    return str(number) if isinstance(number, int) and not isinstance(number, bool) else number


def check_fields(record: Mapping[str, Any], where: str) -> None:
    """Check that all fields are known and hold clean JSON.

    Raises:
        ValueError: They do not; the message names place and field.
    """
    for name, value in record.items():
        if name not in FIELDS:
            raise ValueError(
                f"{where}: unknown field {name!r:.80}; a row has {', '.join(FIELDS)}: "
                "put other values under 'meta'"
            )
        check_json(value, f"{where}: field {name!r}")
    if not isinstance(record.get("task", ""), str):
        raise ValueError(f"{where}: field 'task': {record['task']!r:.80} is not a string")


def _present(record: Mapping[str, Any], name: str, where: str) -> Any:
    if record.get(name) is None:
        state = "is null" if name in record else "is missing"
        meta = record.get("meta")
        names = [*record, *(meta if isinstance(meta, Mapping) else ())]
        present = ", ".join(key for key in names if key not in ("id", "meta")) or "none"
        raise ValueError(
            f"{where}: field {name!r} {state}; every row needs it (present: {present:.200}); the "
            "task's option columns maps other names"
        )
    return record[name]


def _text(record: Mapping[str, Any], name: str, where: str, *, may_be_empty: bool = False) -> str:
    return _checked_text(
        _present(record, name, where), f"{where}: field {name!r}", may_be_empty=may_be_empty
    )


def _checked_text(value: object, where: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: {value!r:.80} is not a string; write it in quotes")
    if not value.strip() and not may_be_empty:
        raise ValueError(f"{where} is empty; give it some text")
    return value


def _prompt(value: object, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message(role="user", content=_checked_text(value, where)),)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: {value!r:.80} is neither a string nor a list of messages")
    messages = tuple(
        _message(item, f"{where}, message {number}") for number, item in enumerate(value, start=1)
    )
    _check_roles([message["role"] for message in messages], where)
    return messages


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping) or not {"role", "content"} <= value.keys():
        raise ValueError(f"{where}: {value!r:.80} is not an object with 'role' and 'content'")
    if unknown := value.keys() - MESSAGE_FIELDS:
        raise ValueError(
            f"{where}: unknown field {min(unknown)!r:.80}; a message has 'role' and 'content', and "
            "may have 'name', 'tool_calls' and 'tool_call_id', for chat templates that use them"
        )
    if value["role"] not in ROLES:
        raise ValueError(f"{where}: unknown role {value['role']!r:.80}; use {', '.join(ROLES)}")
    content = _content(value["content"], where, may_be_empty=bool(value.get("tool_calls")))
    # A table's messages all have the same fields, of which most are null.
    given = {name: each for name, each in value.items() if each is not None}
    return cast(Message, {**given, "content": content})


def _content(value: object, where: str, *, may_be_empty: bool) -> str | list[TextPart]:
    """A message's text, or its parts, which must all be text."""
    if not isinstance(value, list):
        return _checked_text(value, where, may_be_empty=may_be_empty)
    for part in value:
        if not isinstance(part, Mapping) or part.keys() != {"type", "text"}:
            raise ValueError(
                f'{where}: {part!r:.80} is no text part; write {{"type": "text", "text": "…"}}: '
                "images and other parts are not read"
            )
        if part["type"] != "text":
            raise ValueError(f"{where}: a part of type {part['type']!r:.80}; only text is read")
        _checked_text(part["text"], where, may_be_empty=True)
    parts = [TextPart(type="text", text=part["text"]) for part in value]
    _checked_text("".join(part["text"] for part in parts), where, may_be_empty=may_be_empty)
    return parts


def _check_roles(roles: list[str], where: str) -> None:
    if roles[-1] != "user":
        raise ValueError(
            f"{where}: the last message is the {roles[-1]}'s; it must be the user's, "
            "and the reply to it belongs in 'demonstration'"
        )
    for role in INSTRUCTING_ROLES:
        if role in roles[1:]:
            raise ValueError(
                f"{where}: a {role} message after the first message; move it to the front"
            )


def _answer(record: Mapping[str, Any], where: str) -> Any:
    answer = _present(record, "answer", where)
    return _text(record, "answer", where) if isinstance(answer, str) else answer


def _meta(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    meta = record.get("meta")
    if meta is None:
        return {}
    if not isinstance(meta, Mapping):
        raise ValueError(f"{where}: field 'meta': {meta!r:.80} is not an object; write {{...}}")
    return meta


def _value_at(record: Mapping[str, Any], dotted_path: str, where: str) -> Any:
    value: Any = record
    for key in dotted_path.split("."):
        if not isinstance(value, Mapping) or value.get(key) is None:
            known = ", ".join(value) if isinstance(value, Mapping) else "none"
            raise ValueError(
                f"{where}: context_field {dotted_path!r}: there is no {key!r:.80}; "
                f"the keys there are: {known:.400}"
            )
        value = value[key]
    return value


def check_unique_ids(rows: Iterable[Demonstration], task: str, split: str) -> None:
    """Check that no id occurs twice in a split.

    Raises:
        ValueError: One does.
    """
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise ValueError(
                f"task {task!r}: the id {row.id!r:.80} occurs twice in {split}; ids must be "
                "unique within a split"
            )
        seen.add(row.id)
