"""Scores answers that end with a tag: whether tag and answer are there and correct."""

from __future__ import annotations

import re

from sdft.scorers.text_answers import text_gold
from sdft.types import Demonstration

MIN_WORDS = 4
"""Fewest words before the tag that count as an answer."""

_TAG = re.compile(r"\[topic: ([^\[\]\n]{1,80})\]\s*\Z")
_WORD = re.compile(r"[^\W\d_]+")


def topic_gold(row: Demonstration) -> str:
    """The topic in lower case, which must be one word."""
    topic = text_gold(row).strip().lower()
    if not _WORD.fullmatch(topic):
        raise ValueError(f"needs a topic of one word, not {row.answer!r:.80}")
    return topic


def tagged_answer(completion: str, gold: str) -> float:
    """1 if the completion is an answer about the topic that ends with ``[topic: <topic>]``.

    The tag occurs once, at the very end, and names the topic, in any case. The text before it has
    at least :data:`MIN_WORDS` words, mentions the topic (as a word, or as the beginning of one,
    such as a plural), and does not repeat itself (at least half of its words are distinct). Whether
    the answer is good advice is not judged.
    """
    return float(_has_tag(completion, gold) and _is_answer(completion, gold))


def topic_named(completion: str, gold: str) -> float:
    """1 if the completion ends with the right tag, whatever stands before it."""
    return float(_has_tag(completion, gold))


def _has_tag(completion: str, gold: str) -> bool:
    found = _TAG.search(completion)
    once = completion.count("[topic:") == 1
    return once and found is not None and found[1].strip().lower() == gold


def _is_answer(completion: str, gold: str) -> bool:
    body, _, _ = completion.partition("[topic:")
    words = [word.lower() for word in _WORD.findall(body)]
    about = any(word.startswith(gold) for word in words)
    return about and len(words) >= MIN_WORDS and 2 * len(set(words)) >= len(words)
