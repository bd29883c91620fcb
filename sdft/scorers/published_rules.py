"""Scores as others publish them, including their false negatives and false positives.

- ``published_action_input`` is ToolAlpaca's as the paper's released evaluation computes it:
  ``action_input`` with a parser that stops at the first closing brace and gold names with marks
  such as ``[Optional]``. Of the paper's 68 test rows, whose gold calls should all pass, it fails
  two and ``action_input`` none.
- ``published_multiple_choice`` is the paper's science task: the text in the last answer tag.
- ``squad_exact_match`` and ``squad_f1`` are SQuAD 1.1's (Rajpurkar et al. 2016), for which 5 is
  -5, 15 is 1.5 and C is C++; ``exact_match`` and ``token_f1`` tell these apart.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from typing import Any

from sdft.scorers.actions import ActionsGold, merged_calls
from sdft.scorers.text_answers import accepted_texts
from sdft.types import Demonstration

_NAME = re.compile(r"Action:\s*+(\w++)")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_INPUT = re.compile(r"Action Input:\s*+(?=\{)")


def published_gold(row: Demonstration) -> ActionsGold:
    """The gold calls, names as they are in the row."""
    return merged_calls(row)


def published_action_input(completion: str, gold: ActionsGold) -> float:
    """1 if the multiset of action names and the merged inputs are the gold ones.

    A name ends at the first character that is not a letter, digit or underscore. An input ends at
    its first closing brace, so an input with nested objects is cut there and, being no longer JSON,
    is skipped.
    """
    names = Counter(_NAME.findall(completion))
    return float(names == gold.names and _merged_inputs(completion) == gold.inputs)


def _merged_inputs(text: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    position = 0
    while marker := _INPUT.search(text, position):
        position = text.find("}", marker.end()) + 1
        if not position:
            break
        try:
            merged.update(json.loads(text[marker.end() : position]))
        except (ValueError, RecursionError):
            continue
    return merged


def published_multiple_choice(completion: str, gold: str) -> float:
    """1 if the text after the last ``<answer>``, up to ``</answer>``, is the letter.

    Only white space around it is ignored; without a tag the score is 0.
    """
    _, tag, tail = completion.rpartition("<answer>")
    return float(bool(tag) and tail.partition("</answer>")[0].strip() == gold)


def squad_words(text: str) -> list[str]:
    """Lower case, without ASCII punctuation, then without articles, split at white space."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def squad_gold(row: Demonstration) -> list[list[str]]:
    """The words of every accepted answer: one string, or a list of them."""
    golds = [squad_words(text) for text in accepted_texts(row)]
    if not golds or not all(golds):
        raise ValueError(
            "needs a string with at least one word that is no article as the answer, or a list of "
            f"such strings, not {row.answer!r:.80}"
        )
    return golds


def squad_exact_match(completion: str, golds: list[list[str]]) -> float:
    """1 if the completion's words are an accepted answer's (SQuAD 1.1).

    Case, ASCII punctuation wherever it stands, English articles and white space do not count.
    """
    return float(squad_words(completion) in golds)


def squad_f1(completion: str, golds: list[list[str]]) -> float:
    """Harmonic mean of word precision and recall, the best over the accepted answers (SQuAD 1.1).

    Words are those of ``squad_exact_match``.
    """
    found = Counter(squad_words(completion))
    return max(2 * (found & Counter(gold)).total() / (found.total() + len(gold)) for gold in golds)
