"""Parses a call in function syntax, such as ``book_table(name="Ann", guests=4)``.

A small recursive-descent reader of Python's literals and calls, and of JSON's words;
no part of the text is ever evaluated, and parsing takes time linear in its length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdft.scorers.json_objects import MAX_DEPTH

_SPACE = re.compile(r"\s*+")
_NAME = re.compile(r"[^\W\d][\w.\-]*+")
_KEYWORD = re.compile(r"([^\W\d][\w\-]*+)\s*+=(?!=)")
_STRING = re.compile(
    r"(?P<prefix>(?:[rR][bB]?|[bB][rR]?|[uU])?)"
    r"(?:\"\"\"(?P<a>(?:[^\"\\]++|\\.|\"(?!\"\"))*+)\"\"\"|'''(?P<b>(?:[^'\\]++|\\.|'(?!''))*+)'''"
    r"|\"(?P<c>(?:[^\"\\]++|\\.)*+)\"|'(?P<d>(?:[^'\\]++|\\.)*+)')",
    re.DOTALL,
)
_DIGITS = r"[0-9]++(?:_[0-9]++)*+"
_UNSIGNED = (
    r"(?:0[xX][0-9a-fA-F_]++|0[oO][0-7_]++|0[bB][01_]++"
    rf"|(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?{_DIGITS})?)"
)
_NUMBER = re.compile(rf"[-+]?\s*+{_UNSIGNED}(?P<imaginary>[jJ]?)(?![\w.])")
_IMAGINARY_PART = re.compile(rf"[-+]\s*+{_UNSIGNED}[jJ](?![\w.])")
_MAX_NUMBER_LENGTH = 400
_ESCAPE = re.compile(
    r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[0-7]{1,3}|N\{[^{}]{1,100}\}|.)", re.DOTALL
)
_ESCAPED = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\n": "",
    "\\": "\\", "'": "'", '"': '"', "/": "/",
}  # fmt: skip
_WORDS = {
    "true": True, "True": True, "false": False, "False": False, "null": None, "None": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call.

    Args:
        name: The function's name; may contain dots and hyphens.
        arguments: Values by keyword. Values are strings, bytes, numbers, true, false, null,
            ``...``, lists, tuples, sets, mappings and calls.
        positional: Values without a keyword, which precede the others.
    """

    name: str
    arguments: Mapping[str, Any]
    positional: tuple[Any, ...] = ()


class CallReader:
    """Reads a text from left to right; every method leaves the position after what it read.

    Args:
        text: The call and nothing else.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def read(self) -> ToolCall:
        """The call.

        Raises:
            ValueError: The text is anything else; the message says what was expected where.
        """
        name = self._take(_NAME, "a function name")[0]
        self._expect("(")
        call = self._call(name, depth=1)
        if self._position != len(self._text):
            raise self._error("the end of the text")
        return call

    def _call(self, name: str, depth: int) -> ToolCall:
        """A call whose opening bracket has been read."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}

        def argument() -> None:
            keyword = _KEYWORD.match(self._text, self._position)
            if keyword is not None:
                self._skip_space(keyword.end())
                self._add(keywords, keyword[1], self._value(depth))
            elif keywords:
                raise self._error("an argument's name")
            else:
                positional.append(self._value(depth))

        self._each(")", argument)
        return ToolCall(name, keywords, tuple(positional))

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self._error(f"at most {MAX_DEPTH} nested values")
        if self._accept("["):
            return self._elements("]", depth + 1)[0]
        if self._accept("("):
            elements, has_comma = self._elements(")", depth + 1)
            return elements[0] if len(elements) == 1 and not has_comma else tuple(elements)
        if self._accept("{"):
            return self._braces(depth + 1)
        if _STRING.match(self._text, self._position):
            return self._strings()
        number = _NUMBER.match(self._text, self._position)
        return self._word(depth) if number is None else self._number(number)

    def _elements(self, closing: str, depth: int) -> tuple[list[Any], bool]:
        """Values up to the closing bracket, and whether there is a comma."""
        elements: list[Any] = []
        has_comma = self._each(closing, lambda: elements.append(self._value(depth)))
        return elements, has_comma

    def _braces(self, depth: int) -> dict[Any, Any] | frozenset[Any]:
        """A mapping, or a set where its first value has no colon."""
        members: dict[Any, Any] = {}
        is_set = False

        def member() -> None:
            nonlocal is_set
            key = self._value(depth)
            if not members:
                is_set = not self._text.startswith(":", self._position)
            if is_set:
                self._hashable(key)
                members[key] = None
            else:
                self._expect(":")
                self._add(members, key, self._value(depth))

        self._each("}", member)
        return frozenset(members) if is_set else members

    def _each(self, closing: str, read: Callable[[], None]) -> bool:
        """Read items between commas up to the closing bracket; return whether there is a comma."""
        has_comma = False
        while not self._accept(closing):
            read()
            if not self._accept(","):
                self._expect(closing)
                break
            has_comma = True
        return has_comma

    def _add(self, members: dict[Any, Any], key: Any, value: Any) -> None:
        self._hashable(key)
        if key in members:
            raise self._error(f"no second value for {key!r:.80}")
        members[key] = value

    def _hashable(self, value: Any) -> None:
        try:
            hash(value)
        except TypeError:
            raise self._error(f"no {type(value).__name__} as a key or in a set") from None

    def _strings(self) -> str | bytes:
        """One string, or several adjacent ones, which are joined."""
        parts: list[str | bytes] = []
        while found := _STRING.match(self._text, self._position):
            self._skip_space(found.end())
            body = next(each for each in found.group("a", "b", "c", "d") if each is not None)
            prefix = found["prefix"].lower()
            text = body if "r" in prefix else unescape(body)
            try:
                parts.append(text.encode("latin-1") if "b" in prefix else text)
            except UnicodeEncodeError:
                raise self._error("bytes without characters above 255") from None
        if isinstance(parts[0], str):
            return "".join(self._same_kind(part, str) for part in parts)
        return b"".join(self._same_kind(part, bytes) for part in parts)

    def _same_kind(self, part: Any, kind: type) -> Any:
        if not isinstance(part, kind):
            raise self._error("no bytes beside a string")
        return part

    def _number(self, found: re.Match[str]) -> int | float | complex:
        number = self._read_number(found)
        imaginary = _IMAGINARY_PART.match(self._text, self._position)
        if imaginary is None or found["imaginary"]:
            return number
        return number + self._read_number(imaginary)

    def _read_number(self, found: re.Match[str]) -> int | float | complex:
        digits = "".join(found[0].split())
        if len(digits) > _MAX_NUMBER_LENGTH:
            raise self._error(f"a number of at most {_MAX_NUMBER_LENGTH} characters")
        self._skip_space(found.end())
        try:
            return _parsed(digits)
        except ValueError:
            raise self._error(f"a number, not {digits!r:.80}") from None

    def _word(self, depth: int) -> Any:
        if self._accept("..."):
            return ...
        word = _NAME.match(self._text, self._position)
        if word is not None:
            after = _SPACE.match(self._text, word.end())
            if after is not None and self._text.startswith("(", after.end()):
                self._skip_space(after.end() + 1)
                return self._call(word[0], depth + 1)
            if word[0] in _WORDS:
                self._skip_space(word.end())
                return _WORDS[word[0]]
        raise self._error(
            "a value: a string in quotes, a number, true, false, null, a call, [, ( or {"
        )

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


def _parsed(digits: str) -> int | float | complex:
    if digits[-1] in "jJ":
        return complex(digits)
    if digits.lstrip("+-")[:2].lower() in ("0x", "0o", "0b"):
        return int(digits, 0)
    return float(digits) if set(digits) & set(".eE") else int(digits)


def unescape(quoted: str) -> str:
    r"""The text inside a string: Python's and JSON's escapes; an unknown one, such as \d, stays."""
    if "\\" not in quoted:
        return quoted
    text = _ESCAPE.sub(_escaped_character, quoted)
    # Two escapes of a surrogate pair are one character.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _escaped_character(escape: re.Match[str]) -> str:
    code = escape[1]
    if code in _ESCAPED:
        return _ESCAPED[code]
    try:
        if code[0] in "uUx" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code[0] == "N" and len(code) > 1:
            return unicodedata.lookup(code[2:-1])
        return chr(int(code, 8)) if code.isdigit() and code.isascii() else escape[0]
    except (ValueError, KeyError):  # above the last character, or no such name
        return escape[0]
