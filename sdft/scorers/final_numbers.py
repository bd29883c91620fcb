"""Scores chains of thought that end in a number, as those of GSM8K do.

Values are exact fractions; a percentage is distinguished from the number before its sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

from sdft.scorers.normalisation import ascii_digits, composed
from sdft.types import Demonstration

_MAX_LENGTH = 400  # characters of a number; anything longer is not read
_MAX_EXPONENT = 400
_SPACES = "\u00a0\u2009\u202f"  # between thousands
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VULGAR = {
    "\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
    "\u2155": "1/5", "\u2156": "2/5", "\u2157": "3/5", "\u2158": "4/5", "\u215b": "1/8",
    "\u215c": "3/8", "\u215d": "5/8", "\u215e": "7/8",
}  # fmt: skip
_PLAIN = str.maketrans(
    {**{sign: f" {value}" for sign, value in _VULGAR.items()}, "\u2212": "-", "\u2044": "/",
     "\u066b": ".", "\u066c": ","}
)  # fmt: skip
_BRACED = r"\{\s*+([0-9]{1,400})\s*+\}"
_LATEX_FRACTION = re.compile(rf"\\[dt]?frac\s*+{_BRACED}\s*+{_BRACED}")
_LATEX_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,])(?=[0-9]{3})")
_MARKERS = re.compile(r"####|\\boxed\{|<answer>|(?i:\banswer[\s*]*+(?:is\b|was\b|:|=))")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|\n|</answer>")

_GROUPS = rf"(?:(?:,[0-9]{{3}})+|(?:[{_SPACES}][0-9]{{3}})+)(?![0-9])"
_WHOLE = rf"(?:[0-9]{{1,3}}{_GROUPS}|[0-9]++)"
_NUMBER = re.compile(
    rf"""
    (?<![\w^./])(?<![0-9][,:])               # not the rest of a word, a power, a number
    (?P<sign>(?:(?<![\w)\]}}])[-+])?)
    (?:\\?[$\u20ac\u00a3\u00a5\u20b9]\s?)?
    (?: (?P<above>{_WHOLE}) \s*+/\s*+ (?P<below>[0-9]++) (?!\.?[0-9]|/)
      | (?P<mixed>[0-9]++) \s++ (?P<part>[0-9]++)/(?P<parts>[0-9]++) (?!\.?[0-9]|/)
      | (?P<plain>{_WHOLE}(?:\.[0-9]++)?|\.[0-9]++) (?:[eE](?P<exponent>[-+]?[0-9]++))?
    )
    (?![,:./][0-9]|\s?\^|\*\*[0-9])         # nor the beginning of one
    (?: \s*+\\?(?P<percent>%|(?i:per\s?cent\b)) | \s++(?P<scale>(?i:thousand|[mbt]r?illion)\b) )?
    """,
    re.VERBOSE,
)


class Number(NamedTuple):
    """A number that a text states.

    Args:
        value: As written, without the sign of a percentage: 50 for 50 %.
        is_percentage: Whether that sign follows.
    """

    value: Fraction
    is_percentage: bool


def number_gold(row: Demonstration) -> Number:
    """The gold number: a number, or a text that states one, GSM8K's whole chain among them."""
    answer = row.answer
    text = str(answer) if isinstance(answer, int | float | str) else ""
    found = None if isinstance(answer, bool) else stated_number(text)
    if found is None:
        raise ValueError(f"needs a number, or a text that ends in one, not {answer!r:.80}")
    return found


def final_number(completion: str, gold: Number) -> float:
    r"""1 if the number that the completion ends in has the gold number's value.

    The number after the last of these markers that has one: ``####``, ``\boxed{``, ``<answer>``,
    "answer is", "answer:". It is the first one in the sentence after the marker, or the first one
    after the last equals sign there. Without such a marker it is the completion's last number.

    Values are exact: 1,000 is 1000, 3.50 is 3.5, 1/2 and ½ are 0.5, 2 million is
    2000000. Currency signs and units do not count. If only one of the two numbers is a
    percentage, such as 50 %, it equals both 50 and 0.5.
    """
    found = stated_number(completion)
    return float(found is not None and _equal(found, gold))


def stated_number(text: str) -> Number | None:
    """The number that a text ends in, by the rule of :func:`final_number`."""
    text = ascii_digits(composed(text)).translate(_PLAIN)
    text = _LATEX_FRACTION.sub(r" \1/\2", _LATEX_THOUSANDS.sub("", text))
    for statement in reversed(list(_statements(text))):
        for part in (statement.rpartition("=")[2], statement):
            if found := next(_numbers(_NUMBER.finditer(part)), None):
                return found
    return next(_numbers(reversed(list(_NUMBER.finditer(text)))), None)


def _statements(text: str) -> Iterator[str]:
    """What follows each marker, up to the next one or the end of the sentence."""
    markers = list(_MARKERS.finditer(text))
    ends = [*(marker.start() for marker in markers[1:]), len(text)]
    for marker, end in zip(markers, ends, strict=False):
        following = text[marker.end() : end].lstrip(" \t\n\r:*_`$\"'([")
        stop = _SENTENCE_END.search(following)
        yield following if stop is None else following[: stop.start()]


def _numbers(matches: Iterable[re.Match[str]]) -> Iterator[Number]:
    """The values of the matches that have one, in order."""
    for found in matches:
        value = _value(found)
        if value is not None:
            yield Number(-value if found["sign"] == "-" else value, found["percent"] is not None)


def _value(found: re.Match[str]) -> Fraction | None:
    """The value without its sign; None for a denominator of 0 or a number too long to read."""
    if len(found[0]) > _MAX_LENGTH:
        return None
    if found["plain"] is None:
        whole = int(found["mixed"] or 0)
        above = _whole(found["part"] or found["above"])
        below = int(found["parts"] or found["below"])
        value = whole + Fraction(above, below) if below else None
    else:
        value = _decimal(found["plain"], int(found["exponent"] or 0))
    return value if value is None else value * _SCALES.get((found["scale"] or "").lower(), 1)


def _decimal(digits: str, exponent: int) -> Fraction | None:
    whole, _, fraction = digits.partition(".")
    if abs(exponent) > _MAX_EXPONENT:
        return None
    return Fraction(_whole(whole + fraction or "0")) * Fraction(10) ** (exponent - len(fraction))


def _whole(digits: str) -> int:
    return int(re.sub(rf"[,{_SPACES}]", "", digits))


def _equal(found: Number, gold: Number) -> bool:
    if found.is_percentage == gold.is_percentage:
        return found.value == gold.value
    percentage, number = (found, gold) if found.is_percentage else (gold, found)
    return number.value in (percentage.value, percentage.value / 100)
