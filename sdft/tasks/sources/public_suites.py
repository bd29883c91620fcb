"""Rows of multiple-choice benchmarks: HellaSwag, ARC-Easy, WinoGrande, TruthfulQA, MMLU.

Each row has the texts whose likelihoods are compared (``meta.context``, ``meta.choices`` and the
index of the right one, ``meta.gold``), and the same as a question whose answer is a letter.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import string
from collections.abc import Iterator, Sequence

from sdft.tasks.sources.records import Files, Record, json_lines, one_turn


def suite_hellaswag(files: Files) -> Iterator[Record]:
    """HellaSwag, unchanged, with marks such as ``[header]``.

    Zellers et al., ACL 2019.
    """
    for row in json.loads(files["questions"].read_text("utf-8"))["test"]:
        choices = list(row["choices"].values())
        gold = list(row["choices"]).index(row["answer"])
        asked = "Choose the most plausible continuation."
        yield _row(f"hellaswag-{row['id']}", asked, row["question"], choices, gold)


def suite_arc_easy(files: Files) -> Iterator[Record]:
    """ARC-Easy. Clark et al., arXiv 1803.05457."""
    for index, row in enumerate(json_lines(files["questions"])):
        asked = "Choose the best answer."
        made = _row(f"arc_easy-{index}", asked, row["query"], row["choices"], row["gold"])
        made["meta"]["context"] = f"{row['query']}\nAnswer:"
        yield made


def suite_winogrande(files: Files) -> Iterator[Record]:
    """WinoGrande: the sentence and its two options are put together from the two filled-in ones.

    Sakaguchi et al., AAAI 2020.
    """
    for index, row in enumerate(json_lines(files["questions"])):
        filled, rest = row["context_options"], row["continuation"]
        start = os.path.commonprefix(filled).rfind(" ") + 1  # noqa: RUF071 (of characters)
        sentence = f"{filled[0][:start]}_ {rest}"
        options = [each[start:] for each in filled]
        asked = "Which option fits the blank (_)?"
        made = _row(f"winogrande-{index}", asked, sentence, options, row["gold"])
        made["meta"] |= {"partial_contexts": filled, "continuation": rest}
        yield made


def suite_truthfulqa_mc1(files: Files) -> Iterator[Record]:
    """TruthfulQA's questions with one true answer; choices are ordered by their SHA-256.

    Upstream lists the true one first. Lin et al., ACL 2022.
    """
    for index, row in enumerate(json.loads(files["questions"].read_text("utf-8"))):
        targets = row["mc1_targets"]
        choices = sorted(targets, key=lambda text: hashlib.sha256(text.encode()).digest())
        gold = [targets[choice] for choice in choices].index(1)
        context = f"Q: {row['question']}\nA:"
        yield _row(f"truthfulqa-{index}", "Choose the true answer.", context, choices, gold)


def suite_mmlu(files: Files) -> Iterator[Record]:
    """MMLU's test questions; a file is named by its subject. Hendrycks et al., ICLR 2021."""
    for subject, path in files.items():
        with path.open(encoding="utf-8", newline="") as stream:
            for index, row in enumerate(csv.DictReader(stream), start=1):
                name = subject.replace("_", " ")
                asked = f"The following is a multiple choice question about {name}."
                choices = [row[f"choice{n}"].strip() for n in range(4)]
                question = row["question"].strip()
                gold = int(row["answer"])
                made = _row(f"mmlu-test-{subject}-{index}", asked, question, choices, gold)
                made["meta"]["subject"] = subject
                yield made


def _row(name: str, asked: str, context: str, choices: Sequence[str], gold: int) -> Record:
    letters = string.ascii_uppercase
    lines = [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=False)]
    prompt = "\n".join([f"{asked}\n\n{context}", *lines, "Answer with the letter only."])
    return {
        "id": name,
        "prompt": one_turn(prompt),
        "demonstration": "",
        "answer": letters[gold],
        "meta": {
            "context": context,
            "choices": list(choices),
            "gold": gold,
            "scoring": "mc_loglik_or_letter",
        },
    }
