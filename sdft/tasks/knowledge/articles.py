"""Chooses articles of a given year from a search dump of Wikipedia.

The dumps named ``…-cirrussearch-content.json.gz`` hold two lines per article: its plain text, its
categories and its date of creation. They are read line by line.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdft.runs.files import write_text_atomically

ARTICLES = "articles.jsonl"
MIN_CHARACTERS = 500  # a shorter article has too few facts to ask about
_SENTENCE_END = re.compile(r"[.!?]\s")


def choose_articles(
    dump: Path,
    output: Path,
    *,
    created: str,
    category: str = "",
    num_articles: int = 100,
    max_characters: int = 8000,
) -> int:
    """Write ``articles.jsonl``: the first articles of the dump that match, one per line.

    Args:
        dump: A ``cirrussearch-content.json.gz`` file, compressed or not.
        output: The folder to write to.
        created: How the day of an article's first version begins, such as ``2025`` or ``2025-03``.
        category: A regular expression that one of the article's categories must match.
        num_articles: How many to keep.
        max_characters: Where a longer text is cut, at the end of a sentence.

    Returns:
        Their number.

    Raises:
        ValueError: A line does not have the form of such a dump, or no article matches.
    """
    wanted = re.compile(category)
    chosen: list[dict[str, Any]] = []
    for page in _pages(dump):
        if len(chosen) == num_articles:
            break
        fits = str(page.get("create_timestamp", "")).startswith(created)
        fits = fits and any(wanted.search(name) for name in page.get("category") or [""])
        if fits and len(page["text"]) >= MIN_CHARACTERS:
            chosen.append(_article(page, max_characters))
    if not chosen:
        raise ValueError(
            f"{dump}: no article was created in {created!r} in a category like {category!r} with "
            f"{MIN_CHARACTERS} characters or more"
        )
    lines = (json.dumps(article, ensure_ascii=False) + "\n" for article in chosen)
    write_text_atomically(output / ARTICLES, "".join(lines))
    return len(chosen)


def _pages(dump: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if dump.suffix == ".gz" else open
    with opener(dump, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{dump}:{number}: not a line of JSON: {error}") from error
            if "index" not in record and record.get("namespace") == 0:
                yield record


def _article(page: dict[str, Any], max_characters: int) -> dict[str, Any]:
    text = page["text"]
    if len(text) > max_characters:
        ends = [match.end() for match in _SENTENCE_END.finditer(text[:max_characters])]
        text = text[: ends[-1] if ends else max_characters]
    return {
        "title": page["title"],
        "created": page["create_timestamp"],
        "version": page.get("version"),
        "text": text.strip(),
    }
