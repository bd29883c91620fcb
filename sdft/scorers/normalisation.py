"""Normalises text for comparison: Unicode forms, white space, punctuation, numbers.

Every function takes time linear in the text's length.
"""

from __future__ import annotations

import re
import string
import unicodedata

_QUOTES = "\"'`\u2018\u2019\u201a\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a"
_DASHES = "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"  # read as a hyphen


def _by_category() -> dict[str, str]:
    """Unicode category -> its characters, without ideographs and syllables."""
    found: dict[str, list[str]] = {}
    for code in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xFB00, 0x1F000)):
        found.setdefault(unicodedata.category(chr(code)), []).append(chr(code))
    return {category: "".join(each) for category, each in found.items()}


def _of(*categories: str) -> str:
    return "".join(_CHARACTERS.get(category, "") for category in categories)


_CHARACTERS = _by_category()
_DIGITS = {ord(each): str(unicodedata.decimal(each)) for each in _of("Nd")}
_PUNCTUATION_MARKS = "".join(
    dict.fromkeys(string.punctuation + _of("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sc"))
)
_FINAL_MARKS = (
    ".,;:!?\u2026\u3001\u3002\uff01\uff0c\uff0e\uff1a\uff1b\uff1f\u060c\u061b\u061f\u06d4\u0964"
)
AROUND = string.whitespace + "*" + _QUOTES
_EDGES = _QUOTES + "\u300c\u300d\u300e\u300f"
# Deleted, so that the text around them is one word; any other punctuation separates words.
_JOINING = "".join(set(string.punctuation) - set("<>{}\\|=")) + _QUOTES + "\u00b7\u05f3\u05f4"
# Scripts that put no space between words: Thai, Lao, Burmese, Khmer, Hiragana, ideographs.
UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u1000-\u103f\u1050-\u108f\u1780-\u17d3\u17dd"
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)

_SHAPELESS = dict.fromkeys(map(ord, _of("Cf")))
_MARKS = _of("Mn", "Mc", "Me")
# Unicode's stream-safe form: ordering longer runs of marks takes quadratic time.
_LONG_RUN = re.compile(f"([{_MARKS}]{{30}})[{_MARKS}]+")
_FOR_WORDS = {**_DIGITS, **dict.fromkeys(map(ord, _DASHES), "-")}
_CLASS = re.escape(_PUNCTUATION_MARKS)
_SPACE = re.compile(r"\s+")
_THOUSANDS = re.compile(
    r"(?<![0-9])(?<![0-9][.,])[0-9]{1,3}(?:(?:,[0-9]{3})+|(?:[\u00a0\u2009\u202f][0-9]{3})+)"
    r"(?![0-9])(?!,[0-9])"
)
_NOT_DIGITS = re.compile(r"[^0-9]")
_LEADING_POINT = re.compile(r"(?<![\w.])\.(?=[0-9])")
# Punctuation with a meaning: within a number, a sign before one, C++, C#, A+, A-.
_SIGN = r"(?<![\w)\]-])-(?=[$\u20ac\u00a3\u00a5]?[0-9])"
_KEPT = (
    r"(?<=[0-9])[.,:/*^+'-]{1,2}(?=[0-9])"
    r"|(?<=[^\W_])[+#]+(?!\w)|(?:(?<=\b[a-z])|(?<=\b[a-z][a-z]))-(?![\w-])"
)
_PUNCTUATION = re.compile(
    rf"(?P<kept>{_KEPT})|(?P<sign>{_SIGN})|(?<=[0-9])[{_CLASS}]+(?=[0-9])"
    rf"|(?P<joining>[{re.escape(_JOINING)}])|[{_CLASS}]"
)
_WORD = re.compile(rf"[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}]+")


def composed(text: str) -> str:
    """The text in Unicode's composed form (NFC), without invisible characters."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFC", _LONG_RUN.sub(r"\1", text.translate(_SHAPELESS)))


def bare(text: str) -> str:
    """A label as it is compared.

    Lower case, composed, with every run of white space as one blank; without white space and quotes
    at the ends and without punctuation at the end.
    """
    text = _SPACE.sub(" ", composed(composed(text).casefold()))
    return text.lstrip(" " + _EDGES).rstrip(" " + _EDGES + _FINAL_MARKS)


def words(text: str) -> list[str]:
    """The words of a text as they are compared.

    Lower case, composed, without punctuation and currency signs; but a number keeps its sign, its
    decimal point and a slash, colon or the like between its digits (1,000 is 1000, .5 is 0.5), and
    C++, C#, A+ and A- keep their marks. Digits of all scripts are the same. Where a script puts no
    spaces between words, every character is a word.
    """
    text = composed(composed(text).casefold())
    text = _THOUSANDS.sub(lambda number: _NOT_DIGITS.sub("", number[0]), text)
    text = _LEADING_POINT.sub("0.", text.translate(_FOR_WORDS))
    text = _PUNCTUATION.sub(_as_in_words, text)
    return _WORD.findall(composed(text))


def _as_in_words(mark: re.Match[str]) -> str:
    """The text that replaces a punctuation mark."""
    if mark["sign"]:
        return " -"
    return mark["kept"] or ("" if mark["joining"] else " ")


def ascii_digits(text: str) -> str:
    """The text with the decimal digits of all scripts as 0 to 9."""
    return text if text.isascii() else text.translate(_DIGITS)


def joins_words(character: str) -> bool:
    """Whether a letter beside this character is part of a longer word."""
    if re.match(f"[{UNSPACED}]", character):
        return False
    return character.isalnum() or character in f"_'-\u2019{_MARKS}"
