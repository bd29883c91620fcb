"""``sdft knowledge``: builds your own knowledge task in three steps, with readable files between.

sdft knowledge articles DUMP FOLDER --created 2025 --category "natural disasters"
sdft knowledge questions FOLDER --url http://127.0.0.1:8000/v1 --model NAME
sdft knowledge rows FOLDER
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sdft.scorers.judge_endpoint import Endpoint
from sdft.tasks.knowledge import ARTICLES, QUESTIONS, ask_questions, choose_articles, write_splits


def knowledge_main(arguments: Sequence[str]) -> None:
    """Run one step and print what it wrote."""
    options = _parser().parse_args(list(arguments))
    try:
        lines = options.step(options)
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sdft knowledge", description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(required=True)
    articles = steps.add_parser("articles", help="choose articles from a Wikipedia search dump")
    articles.add_argument("dump", type=Path, help="…-cirrussearch-content.json.gz")
    articles.add_argument("folder", type=Path)
    articles.add_argument("--created", required=True, help="first version's year or day: 2025-03")
    articles.add_argument("--category", default="", help="regular expression of a category")
    articles.add_argument("--num_articles", type=int, default=100)
    articles.add_argument("--max_characters", type=int, default=8000)
    articles.set_defaults(step=_articles)
    questions = steps.add_parser("questions", help="let a model ask about each article")
    questions.add_argument("folder", type=Path)
    questions.add_argument("--url", required=True, help="where the endpoint begins: http://…/v1")
    questions.add_argument("--model", required=True, help="the model's name there")
    questions.add_argument("--api_key_variable", default="OPENAI_API_KEY")
    questions.add_argument("--num_direct", type=int, default=10)
    questions.add_argument("--num_indirect", type=int, default=2)
    questions.set_defaults(step=_questions)
    rows = steps.add_parser("rows", help="write train, validation and test rows")
    rows.add_argument("folder", type=Path)
    rows.set_defaults(step=_rows)
    return parser


def _articles(options: argparse.Namespace) -> list[str]:
    number = choose_articles(
        options.dump,
        options.folder,
        created=options.created,
        category=options.category,
        num_articles=options.num_articles,
        max_characters=options.max_characters,
    )
    return [f"{options.folder / ARTICLES}: {number} articles; delete the lines you do not want"]


def _questions(options: argparse.Namespace) -> list[str]:
    key = os.environ.get(options.api_key_variable)
    endpoint = Endpoint(options.url, options.model, key, num_attempts=4, timeout_s=300.0)
    counts = {"num_direct": options.num_direct, "num_indirect": options.num_indirect}
    failures = ask_questions(options.folder, endpoint.reply, **counts)
    if failures:
        listed = "\n  ".join(failures)
        raise ValueError(f"no questions about {len(failures)} articles:\n  {listed}\nrun it again")
    return [f"{options.folder / QUESTIONS}: read it, and delete what is wrong"]


def _rows(options: argparse.Namespace) -> list[str]:
    return [
        f"{options.folder / split}.jsonl: {number} rows"
        for split, number in write_splits(options.folder).items()
    ]
