"""SciKnowEval's chemistry in the splits of the SDFT authors and of a fork; and GSM8K."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sdft.tasks.sources.records import Files, Record, arrow_rows, json_lines, one_turn

NUM_VALIDATION = 100  # of the authors' chemistry
NUM_MATH_VALIDATION = 200
_ANSWER = re.compile(r"<answer>\s*(?P<letter>[A-D])\s*</answer>")
_NOT_LETTERS = re.compile(r"[^a-z0-9]+")
_FIRST_OPTION = re.compile(r"\n+A[.:] ")


def chemistry(files: Files) -> Iterator[Record]:
    """Questions with four options; the demonstration is "The correct answer is X.".

    Left out: questions without options, whose answer is empty, and rows of train and validation
    whose question is also in the authors' test set (the file ``authors_test``).
    """
    held_out = {_stem(row) for row in arrow_rows(files["authors_test"])}
    for split in ("train", "validation", "test"):
        for index, row in enumerate(arrow_rows(files[split])):
            if not row["_answer"] or (split != "test" and _stem(row) in held_out):
                continue
            yield {
                "split": split,
                "id": f"sci_chem-{split}-{index}",
                "prompt": row["prompt"],
                "demonstration": row["messages"][-1]["content"],
                "answer": row["_answer"],
                "meta": {"scoring": "mc_letter"},
            }


def chemistry_authors(files: Files) -> Iterator[Record]:
    """The SDFT authors' own rows, whose demonstrations reason before they answer.

    The last hundred training rows are for validation; their file ``test`` has no demonstrations.
    """
    train = arrow_rows(files["train"])
    for index, row in enumerate(train):
        answer = _ANSWER.search(row["output_text"])
        if answer is None:
            raise ValueError(f"training row {index}: no <answer> in {row['output_text'][-80:]!r}")
        yield {
            "split": "train" if index < len(train) - NUM_VALIDATION else "validation",
            "id": f"sci_chem-authors-train-{index}",
            "prompt": row["messages"],
            "demonstration": row["output_text"],
            "answer": answer["letter"],
            "meta": {"scoring": "xml_answer"},
        }
    for index, row in enumerate(arrow_rows(files["test"])):
        yield {
            "split": "test",
            "id": f"sci_chem-authors-{index}",
            "prompt": row["prompt"],
            "demonstration": "",
            "answer": row["answer"],
            "meta": {"scoring": "xml_answer"},
        }


def _stem(row: Record) -> str:
    question = row["prompt"][-1]["content"].split("Question: ")[-1]
    return _NOT_LETTERS.sub(" ", _FIRST_OPTION.split(question)[0].lower()).strip()


def gsm8k(files: Files) -> Iterator[Record]:
    """GSM8K's word problems; the last 200 training rows are for validation.

    Cobbe et al., arXiv 2110.14168.
    """
    train, test = (list(json_lines(files[name])) for name in ("train", "test"))
    held_out = len(train) - NUM_MATH_VALIDATION
    splits = {"train": train[:held_out], "validation": train[held_out:], "test": test}
    for split, rows in splits.items():
        for index, row in enumerate(rows):
            yield {
                "split": split,
                "id": f"gsm8k-{split}-{index}",
                "prompt": one_turn(row["question"]),
                "demonstration": row["answer"],
                "answer": row["answer"],
            }
