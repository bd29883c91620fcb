"""Has a model at an OpenAI-compatible endpoint ask about articles; writes a task's rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdft.runs.files import write_text_atomically
from sdft.runs.jsonl import read_records
from sdft.scorers.json_objects import first_object
from sdft.tasks.knowledge.articles import ARTICLES

QUESTIONS = "questions.jsonl"
KINDS = ("direct", "indirect")


def ask_questions(
    folder: Path, reply: Callable[[str], str], *, num_direct: int = 10, num_indirect: int = 2
) -> list[str]:
    """Append questions to ``questions.jsonl``, for each article that has none there yet.

    Args:
        folder: Holds ``articles.jsonl``.
        reply: A model's answer to one message, such as ``Endpoint(...).reply``.
        num_direct: Questions that ask for one fact of the article.
        num_indirect: Questions that need several facts or a conclusion.

    Returns:
        A line for each reply without usable questions, saying what was wrong; running this again
        asks about these articles again.

    Raises:
        FileNotFoundError: There are no articles.
        RuntimeError: The endpoint gave no reply. Questions so far are kept.
    """
    path = folder / QUESTIONS
    done = {record["title"] for _, record in _records(path)}
    failures = []
    for _, article in read_records(folder / ARTICLES):
        if article["title"] in done:
            continue
        message = _template().render(**article, num_direct=num_direct, num_indirect=num_indirect)
        try:
            questions = list(_questions(article["title"], reply(message)))
        except ValueError as error:
            failures.append(f"{article['title']}: {error}")
            continue
        with path.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in questions)
    return failures


def write_splits(folder: Path) -> dict[str, int]:
    """Write train, validation and test rows from the current articles and questions.

    Of each article, the last direct question goes to validation, the indirect ones to test, the
    others to train.
    The article is each row's ``context``, which only the teacher may read.

    Returns:
        The number of rows in each split.

    Raises:
        FileNotFoundError: Articles or questions are missing.
        ValueError: A question's article is not there, or an article has a single direct question.
    """
    texts = {each["title"]: each["text"] for _, each in read_records(folder / ARTICLES)}
    asked: dict[str, list[dict[str, Any]]] = {title: [] for title in texts}
    for where, question in read_records(folder / QUESTIONS):
        if question["title"] not in asked:
            raise ValueError(f"{where}: {question['title']!r} is no article of {ARTICLES}")
        asked[question["title"]].append(question)
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for title, questions in asked.items():
        direct = [each for each in questions if each["kind"] == "direct"]
        if len(direct) == 1:
            raise ValueError(
                f"{QUESTIONS}: {title!r} has one direct question; it needs two or more"
            )
        for number, each in enumerate(questions):
            split = "validation" if direct and each is direct[-1] else "train"
            split = "test" if each["kind"] == "indirect" else split
            splits[split].append(_row(f"{title}-{number}", each, f"{title}\n{texts[title]}"))
    for split, rows in splits.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text_atomically(folder / f"{split}.jsonl", "".join(lines))
    return {split: len(rows) for split, rows in splits.items()}


def _row(name: str, question: dict[str, Any], context: str) -> dict[str, Any]:
    return {
        "id": name,
        "prompt": question["question"],
        "demonstration": question["answer"],
        "answer": question["answer"],
        "context": context,
    }


def _questions(title: str, reply: str) -> Iterator[dict[str, str]]:
    found = first_object(reply)
    if found is None or not isinstance(found.get("direct"), list) or len(found["direct"]) < 2:
        raise ValueError(f"no object with two direct questions or more in {reply!r:.80}")
    for kind in KINDS:
        for each in found.get(kind) or []:
            pair = {name: str(each.get(name, "")).strip() for name in ("question", "answer")}
            if not all(pair.values()):
                raise ValueError(f"a question or answer is empty: {each!r:.80}")
            yield {"title": title, "kind": kind, **pair}


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return read_records(path) if path.is_file() else iter(())


def _template() -> Any:
    environment = ImmutableSandboxedEnvironment(
        loader=PackageLoader("sdft.tasks.knowledge", "."),
        undefined=StrictUndefined,
        autoescape=False,
    )
    return environment.get_template("questions.jinja")
