"""Scores a tool call in function syntax: ``book_table(name="Ann", guests=4)``."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

from sdft.scorers.call_reader import CallReader, ToolCall
from sdft.scorers.normalisation import composed
from sdft.types import Demonstration

_AROUND = string.whitespace + "`"
_FENCE = re.compile(r"```[\w+\-]*+[ \t]*+\n")


def parse_call(text: str) -> ToolCall:
    """Read a text that is one call and nothing else, except white space and a fence around it.

    Values are Python's literals (strings of any kind, bytes, numbers, tuples, lists, sets,
    mappings, True, False, None and ``...``), JSON's true, false and null, and calls.

    Raises:
        ValueError: The text is anything else; the message says what was expected where.
    """
    text = text.strip()
    fence = _FENCE.match(text)
    return CallReader(text[fence.end() if fence else 0 :].strip(_AROUND)).read()


def call_gold(row: Demonstration) -> ToolCall:
    """The gold call: a string in the call syntax, or ``{"name": ..., "arguments": {...}}``."""
    answer = row.answer
    if isinstance(answer, str):
        try:
            return parse_call(answer)
        except ValueError as error:
            raise ValueError(
                f'needs one call such as f(x="1") as the answer, not {answer!r:.80}: {error}'
            ) from error
    if isinstance(answer, Mapping) and answer.keys() == {"name", "arguments"}:
        name, arguments = answer["name"], answer["arguments"]
        if isinstance(name, str) and isinstance(arguments, Mapping):
            return ToolCall(name, arguments)
    raise ValueError(
        'needs a call as the answer, as text or as {"name": ..., "arguments": {...}}, '
        f"not {answer!r:.80}"
    )


def tool_call(completion: str, gold: ToolCall) -> float:
    """1 if the completion is exactly one call, equal to the gold one.

    Names must be equal, and so must positional arguments; keyword arguments may be in any order,
    with none missing and none extra. Strings are equal after stripping white space, folding case
    and composing characters; numbers and truth values by value (4 is 4.0, and neither true nor
    "4"); a tuple is a list of the same elements; nested calls by these rules in turn. White space,
    backticks and a fence around the call do not count.
    """
    try:
        call = parse_call(completion)
    except ValueError:
        return 0.0
    return float(same_value(call, gold))


def same_value(left: object, right: object) -> bool:
    """Whether two argument values are equal by the rule of :func:`tool_call`."""
    if isinstance(left, str) and isinstance(right, str):
        return _folded(left) == _folded(right)
    if isinstance(left, ToolCall) and isinstance(right, ToolCall):
        return (
            left.name == right.name
            and same_value(left.positional, right.positional)
            and same_value(left.arguments, right.arguments)
        )
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(
            same_value(left[key], right[key]) for key in left
        )
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, frozenset) and isinstance(right, frozenset):
        return set(map(_folded, left)) == set(map(_folded, right))
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _folded(value: object) -> object:
    """A text in the form that is compared; any other value, paired with whether it is a bool."""
    if isinstance(value, str):
        return composed(composed(value).strip().casefold())
    return isinstance(value, bool), value
