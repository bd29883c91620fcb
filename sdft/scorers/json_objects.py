"""Finds and scores JSON objects inside a completion, which may be any text.

The search reads the text once, from left to right, so its time is linear in the text's length,
and it never raises because of the text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from sdft.scorers.normalisation import composed
from sdft.types import Demonstration

MAX_DEPTH = 64
"""Deepest nesting of objects and arrays that is read; anything deeper counts as no JSON."""

# A string (even one that never ends), or a bracket outside of strings. The possessive repeats
# keep the match linear.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[{}\[\]]', re.DOTALL)
_NESTING = {"{": 1, "[": 1, "}": -1, "]": -1}
_BRACES = {"{": 1, "}": -1}


def object_at(text: str, start: int) -> tuple[dict[str, Any] | None, int | None]:
    """Read the JSON object whose opening brace is ``text[start]``.

    Returns:
        The object, or None if what the braces enclose is not JSON; and the position after its
        closing brace, or None if the braces never balance.
    """
    braces = nesting = deepest = 0
    for token in _TOKEN.finditer(text, start):
        character = text[token.start()]
        braces += _BRACES.get(character, 0)
        nesting += _NESTING.get(character, 0)
        deepest = max(deepest, nesting)
        if braces == 0:
            span = text[start : token.end()]
            return (_parse(span) if deepest <= MAX_DEPTH else None), token.end()
    return None, None


def first_object(text: str) -> dict[str, Any] | None:
    """The first balanced ``{...}`` that is a JSON object, or None.

    Braces inside strings do not count. A brace that is never closed ends the search.
    """
    start = text.find("{")
    while start != -1:
        value, end = object_at(text, start)
        if value is not None or end is None:
            return value
        start = text.find("{", end)
    return None


def _parse(span: str) -> dict[str, Any] | None:
    try:
        value = json.loads(span, parse_constant=_refuse_constant)
    except ValueError:  # malformed, or an integer of more digits than Python converts
        return None
    return value if isinstance(value, dict) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def whole_object(text: str) -> dict[str, Any] | None:
    """The whole text as a JSON object, ignoring white space around it; None if it is not one."""
    text = text.strip()
    value, end = object_at(text, 0) if text.startswith("{") else (None, None)
    return value if end == len(text) else None


def object_gold(row: Demonstration) -> Mapping[str, Any]:
    """The gold object: the answer itself, or the object it holds as text."""
    value = whole_object(row.answer) if isinstance(row.answer, str) else row.answer
    if not isinstance(value, Mapping):
        raise ValueError(f"needs a JSON object, or its text, as the answer, not {row.answer!r:.80}")
    return value


def json_equal(completion: str, gold: Mapping[str, Any]) -> float:
    """1 if the first JSON object in the completion equals the gold one.

    Keys may be in any order, with none missing and none extra. Values are compared as text in lower
    case, white space collapsed and characters composed (5, 5.0 and "5" are equal); arrays element
    by element.
    """
    found = first_object(completion)
    return float(found is not None and _same(found, gold))


def intent_equal(completion: str, gold: Mapping[str, Any]) -> float:
    """1 if ``intent`` of the first JSON object is the gold one, compared as values are."""
    found = first_object(completion) or {}
    return float("intent" in gold and "intent" in found and _same(found["intent"], gold["intent"]))


def slot_f1(completion: str, gold: Mapping[str, Any]) -> float:
    """Harmonic mean of precision and recall over the (name, value) pairs of ``slots``.

    0 without a JSON object; 1 where neither object has slots.
    """
    read = first_object(completion)
    if read is None:
        return 0.0
    found = _pairs(read.get("slots"))
    expected = _pairs(gold.get("slots"))
    total = found.total() + expected.total()
    return 2 * (found & expected).total() / total if total else 1.0


def _pairs(slots: object) -> Counter[tuple[str, str]]:
    if not isinstance(slots, Mapping):
        return Counter()
    return Counter(
        (name, _scalar_text(value))
        for name, values in slots.items()
        for value in (values if isinstance(values, list) else [values])
    )


def _same(found: object, gold: object) -> bool:
    if isinstance(gold, Mapping):
        return (
            isinstance(found, Mapping)
            and found.keys() == gold.keys()
            and all(_same(found[key], gold[key]) for key in gold)
        )
    if isinstance(gold, list):
        return isinstance(found, list) and len(found) == len(gold) and all(map(_same, found, gold))
    return not isinstance(found, Mapping | list) and _scalar_text(found) == _scalar_text(gold)


def _scalar_text(value: object) -> str:
    if isinstance(value, str):
        return " ".join(composed(value).split()).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return json.dumps(value)
