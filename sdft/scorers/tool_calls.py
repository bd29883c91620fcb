"""Scoring of a tool call in function syntax: ``book_table(name="Ann", guests=4)``.

The call is read by a small recursive-descent reader; nothing of a completion is ever evaluated.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdft.scorers.json_objects import MAX_DEPTH
from sdft.types import Demonstration

_AROUND = string.whitespace + "`"
_SPACE = re.compile(r"\s*+")
_NAME = re.compile(r"[^\W\d][\w.\-]*+")
_KEYWORD = re.compile(r"[^\W\d][\w\-]*+")
_STRING = re.compile(r"\"((?:[^\"\\]++|\\.)*+)\"|'((?:[^'\\]++|\\.)*+)'", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][-+]?[0-9]++)?(?![\w.])")
_MAX_NUMBER_LENGTH = 400
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_WORDS = {
    "true": True, "True": True, "false": False, "False": False, "null": None, "None": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call.

    Args:
        name: Of the function; may contain dots and hyphens.
        arguments: By keyword: strings, numbers, true, false, null, lists and mappings.
    """

    name: str
    arguments: Mapping[str, Any]


def parse_call(text: str) -> ToolCall:
    """Read a text that is one call and nothing else, but white space and backticks around it.

    All arguments are given by keyword, each once. Strings stand in single or double quotes and
    may hold any character; a backslash escapes as in JSON.

    Raises:
        ValueError: The text is anything else; the message says what was expected where.
    """
    return _CallReader(text.strip(_AROUND)).read()


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

    Names must be equal; arguments come in any order, none missing and none more. Strings are
    equal after stripping white space and folding case, numbers and truth values by value.
    """
    try:
        call = parse_call(completion)
    except ValueError:
        return 0.0
    return float(call.name == gold.name and same_value(call.arguments, gold.arguments))


def same_value(left: object, right: object) -> bool:
    """Whether two argument values are equal; true is not 1 and "1" is not 1."""
    if isinstance(left, str) and isinstance(right, str):
        return left.strip().casefold() == right.strip().casefold()
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(
            same_value(left[key], right[key]) for key in left
        )
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_value, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and left == right


class _CallReader:
    """Reads a call from left to right; every method leaves the position after what it read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def read(self) -> ToolCall:
        name = self._take(_NAME, "a function name")[0]
        self._expect("(")
        arguments = self._members(")", self._keyword, "=", depth=1)
        if self._position != len(self._text):
            raise self._error("the end of the text")
        return ToolCall(name, arguments)

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self._error(f"at most {MAX_DEPTH} nested values")
        if self._accept("["):
            return self._elements(depth + 1)
        if self._accept("{"):
            return self._members("}", self._string, ":", depth + 1)
        if self._text.startswith(('"', "'"), self._position):
            return self._string()
        number = _NUMBER.match(self._text, self._position)
        return self._word() if number is None else self._number(number)

    def _members(
        self, closing: str, read_key: Callable[[], str], separator: str, depth: int
    ) -> dict[str, Any]:
        members: dict[str, Any] = {}
        while not self._accept(closing):
            key = read_key()
            if key in members:
                raise self._error(f"no second value for {key!r:.80}")
            self._expect(separator)
            members[key] = self._value(depth)
            if not self._accept(","):
                self._expect(closing)
                break
        return members

    def _elements(self, depth: int) -> list[Any]:
        elements = []
        while not self._accept("]"):
            elements.append(self._value(depth))
            if not self._accept(","):
                self._expect("]")
                break
        return elements

    def _keyword(self) -> str:
        return self._take(_KEYWORD, "an argument's name")[0]

    def _string(self) -> str:
        double, single = self._take(_STRING, "a string in quotes").groups()
        return _unescape(double if single is None else single)

    def _number(self, number: re.Match[str]) -> int | float:
        digits = number[0]
        if len(digits) > _MAX_NUMBER_LENGTH:
            raise self._error(f"a number of at most {_MAX_NUMBER_LENGTH} characters")
        self._take(_NUMBER, "a number")
        return float(digits) if set(digits) & set(".eE") else int(digits)

    def _word(self) -> bool | None:
        word = _KEYWORD.match(self._text, self._position)
        if word is None or word[0] not in _WORDS:
            raise self._error("a value: a string in quotes, a number, true, false, null, [ or {")
        self._take(_KEYWORD, "a value")
        return _WORDS[word[0]]

    def _take(self, pattern: re.Pattern[str], expected: str) -> re.Match[str]:
        found = pattern.match(self._text, self._position)
        if found is None:
            raise self._error(expected)
        self._skip_space(found.end())
        return found

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            raise self._error(repr(mark))

    def _accept(self, mark: str) -> bool:
        found = self._text.startswith(mark, self._position)
        if found:
            self._skip_space(self._position + len(mark))
        return found

    def _skip_space(self, position: int) -> None:
        space = _SPACE.match(self._text, position)
        self._position = position if space is None else space.end()

    def _error(self, expected: str) -> ValueError:
        rest = self._text[self._position : self._position + 20]
        return ValueError(f"expected {expected} at character {self._position}, found {rest!r}")


def _unescape(quoted: str) -> str:
    if "\\" not in quoted:
        return quoted
    text = _ESCAPE.sub(_escaped_character, quoted)
    # Two escapes of a surrogate pair are one character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _escaped_character(escape: re.Match[str]) -> str:
    code = escape[1]
    return chr(int(code[1:], 16)) if len(code) == 5 else _ESCAPED.get(code, code)
