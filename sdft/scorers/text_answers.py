"""Scores answers that are text: labels, option letters, short facts.

Every ``..._gold`` function turns a row's answer into what its scorer compares with, or raises
ValueError with what is wrong; every other public function scores a completion in [0, 1]. None of
them raises because of the completion, and all take time linear in its length.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from sdft.scorers.normalisation import AROUND, UNSPACED, bare, composed, joins_words, words
from sdft.types import Demonstration

_TOKEN_ENDS = string.punctuation.replace("_", "")
_ARTICLES = frozenset({"a", "an", "the"})
_PREAMBLE = ["the", "answer", "is"]
_VERDICTS = ("yes", "no", "maybe")
_VERDICT = re.compile(r"\b(?:yes|no|maybe)\b")
_FINAL_ANSWER = re.compile(r"final answer[:\uff1a]")

_IN_WORD = rf"[^\W{UNSPACED}]"  # a letter beside which makes another part of a word

# Tried in this order; of several matches of one phrase the last counts. The phrase may be in any
# case; the letter must be a capital that stands alone.
_BEFORE_LETTER = r"[\s:*(\[\"'`$]{0,8}+(?:\\boxed\{)?(?:\\text\{)?"
_STATED_LETTER = tuple(
    re.compile(rf"(?i:{phrase}){_BEFORE_LETTER}([A-Z])(?!{_IN_WORD})")
    for phrase in (r"\bthe\s++correct\s++answer\s++is", r"\bthe\s++answer\s++is", r"\banswer:")
)
_TAGGED_LETTER = re.compile(
    rf"{_BEFORE_LETTER}([A-Z])(?:[)\].:*]\s.*|[)\].:*\s\"'`$}}]*)", re.DOTALL
)
_AFTER_LETTER = AROUND + ".)]}$\u3002\uff09"


def text_gold(row: Demonstration) -> str:
    """The answer as a string that is not blank."""
    if not isinstance(row.answer, str) or not row.answer.strip():
        raise ValueError(f"needs a non-empty string as the answer, not {row.answer!r:.80}")
    return row.answer


def label_gold(row: Demonstration) -> str:
    """The normalised label, which must not be empty."""
    label = bare(text_gold(row))
    if not label:
        raise ValueError(f"needs a label that is more than punctuation, not {row.answer!r:.80}")
    return label


def exact_label(completion: str, gold: str) -> float:
    """1 if the whole completion is the label.

    Case, white space and quotes at the ends, and punctuation at the end do not count; composed and
    decomposed characters are the same, and so are all kinds of white space between words.
    """
    return float(bare(completion) == gold)


def normalise_token(text: str) -> str:
    """The first word in lower case, without quotes around it and punctuation at its end.

    Underscores, and the plus and sharp of C++ and C#, do not count as punctuation.
    """
    first = text.split(maxsplit=1)[:1]
    token = bare(first[0]) if first else ""
    marks = re.search(r"(?<=\w)[+#]+$", token)
    return token if marks else token.rstrip(_TOKEN_ENDS)


def token_label_gold(row: Demonstration) -> str:
    """The label, which must be one word."""
    label = text_gold(row)
    if len(label.split()) != 1 or not normalise_token(label):
        raise ValueError(
            f"needs a label of one word, not {label!r:.80}; "
            "for labels of several words use the scorer 'exact_label'"
        )
    return normalise_token(label)


def first_token_label(completion: str, gold: str) -> float:
    """1 if the completion's first word is the label.

    Case, quotes around it and punctuation at its end do not count.
    """
    return float(normalise_token(completion) == gold)


def letter_gold(row: Demonstration) -> str:
    """The letter of the right option, as a capital."""
    letter = row.answer.strip().upper() if isinstance(row.answer, str) else ""
    if len(letter) != 1 or letter not in string.ascii_uppercase:
        raise ValueError(f"needs one letter such as 'B' as the answer, not {row.answer!r:.80}")
    return letter


def multiple_choice(completion: str, gold: str) -> float:
    r"""1 if the chosen letter is the right one.

    With an ``<answer>`` tag: the text after the last one, up to ``</answer>``, must be the letter,
    which may be in brackets, quotes or ``\boxed{}`` and be followed by its option's text, as in
    "(B)" or "B. Boron". Otherwise the letter after the last "the correct answer is", else after the
    last "the answer is", else after the last "answer:", else a letter alone at the completion's
    end.
    """
    return float(_chosen_letter(composed(completion)) == gold)


def _chosen_letter(completion: str) -> str:
    _, tag, tail = completion.rpartition("<answer>")
    if tag:
        tagged = _TAGGED_LETTER.fullmatch(tail.partition("</answer>")[0])
        return "" if tagged is None else str(tagged[1])
    for pattern in _STATED_LETTER:
        letters = pattern.findall(completion)
        if letters:
            return str(letters[-1])
    ending = completion.rstrip(_AFTER_LETTER)[-2:]
    stands_alone = len(ending) == 1 or not joins_words(ending[:1])
    return ending[-1:] if stands_alone else ""


class OptionLetter(NamedTuple):
    """The right letter and the last letter of the row's options."""

    letter: str
    last: str


def option_gold(row: Demonstration) -> OptionLetter:
    """The right letter among as many options as ``meta.choices`` has; four where it is absent."""
    letter = letter_gold(row)
    choices = row.meta.get("choices")
    num_choices = len(choices) if isinstance(choices, Sequence) else 4
    last = string.ascii_uppercase[min(num_choices, 26) - 1]
    if num_choices == 0 or letter > last:
        raise ValueError(f"needs the letter of one of {num_choices} options, not {letter!r}")
    return OptionLetter(letter, last)


def first_letter(completion: str, gold: OptionLetter) -> float:
    """1 if the first capital among the row's options that stands alone is the right one."""
    found = re.search(rf"(?<!{_IN_WORD})[A-{gold.last}](?!{_IN_WORD})", composed(completion))
    return float(found is not None and found[0] == gold.letter)


def answer_words(text: str) -> list[str]:
    """The words that are compared, without articles and a leading "the answer is".

    A text of articles alone keeps them.
    """
    found = words(text)
    if found[:3] == _PREAMBLE and len(found) > 3:
        found = found[3:]
    return [word for word in found if word not in _ARTICLES] or found


def words_gold(row: Demonstration) -> list[list[str]]:
    """The words of every accepted answer: one string, or a list of them."""
    texts = accepted_texts(row)
    golds = [answer_words(text) for text in texts]
    if not all(golds) or not golds:
        raise ValueError(
            "needs a string with at least one word as the answer, or a list of such strings, "
            f"not {row.answer!r:.80}"
        )
    return golds


def accepted_texts(row: Demonstration) -> list[str]:
    """The accepted answers, one string or a list of them; empty for anything else."""
    answers = row.answer if isinstance(row.answer, list) else [row.answer]
    texts = [text for text in answers if isinstance(text, str)]
    return texts if len(texts) == len(answers) else []


def exact_match(completion: str, golds: list[list[str]]) -> float:
    """1 if the completion has the words of an accepted answer and no others.

    As in SQuAD, case, punctuation, currency signs, articles and white space do not count, nor does
    a leading "the answer is". Unlike in SQuAD (``squad_exact_match``), a number keeps its sign and
    a point or the like between its digits, so that 5 is not -5 and 15 not 1.5, though 1,000 is
    1000; C++ and C# are not C; composed and decomposed characters and the digits of all scripts
    are the same; every character is a word where a script puts no spaces between words.
    """
    return float(answer_words(completion) in golds)


def contains(completion: str, golds: list[list[str]]) -> float:
    """1 if the completion contains the words of an accepted answer, whole and consecutive.

    Words are those of ``exact_match``; "iron" is not in "environment", 350 not in 3.50.
    """
    text = f" {' '.join(answer_words(completion))} "
    return float(any(f" {' '.join(gold)} " in text for gold in golds))


def token_f1(completion: str, golds: list[list[str]]) -> float:
    """Harmonic mean of word precision and recall, the best over the accepted answers.

    Words are those of ``exact_match``.
    """
    counts = Counter(answer_words(completion))
    return max(_f1(counts, Counter(gold)) for gold in golds)


def _f1(found: Counter[str], gold: Counter[str]) -> float:
    return 2 * (found & gold).total() / (found.total() + gold.total())


def verdict_gold(row: Demonstration) -> str:
    """The gold verdict."""
    verdict = row.answer.strip().lower() if isinstance(row.answer, str) else ""
    if verdict not in _VERDICTS:
        raise ValueError(f"needs 'yes', 'no' or 'maybe' as the answer, not {row.answer!r:.80}")
    return verdict


def final_answer(completion: str, gold: str) -> float:
    """1 if the final verdict (yes, no or maybe) is the gold one.

    The first of the three words on the line after the last "Final answer:" (the next line that is
    not blank, where this one is); without that marker the last of them in the completion. Case
    and marks around the word do not count.
    """
    return float(final_verdict(completion) == gold)


def final_verdict(completion: str) -> str:
    """The verdict that ``final_answer`` compares; empty if there is none."""
    text = composed(completion).lower()
    last = max((marker.end() for marker in _FINAL_ANSWER.finditer(text)), default=0)
    if last:
        line = text[last:].lstrip(AROUND + "#>-_").partition("\n")[0]
        found = _VERDICT.search(line)
        return "" if found is None else found[0]
    return "".join(_VERDICT.findall(text)[-1:])
