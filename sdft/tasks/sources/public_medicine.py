"""Rows of two medical data sets: PubMedQA and HuatuoGPT-o1's questions."""

from __future__ import annotations

import json
from collections.abc import Iterator

from sdft.tasks.sources.records import Files, Record, one_turn

NUM_HELD_OUT = 500  # rows of validation, and as many of test: the last of the file

ABSTRACT_PROMPT = (
    "Read the abstract and answer the question with yes, no or maybe. First give the conclusion in "
    'one or two sentences, then a last line of the form "Final answer: yes".\n\n'
    "Abstract: {abstract}\n\nQuestion: {question}"
)


def pubmedqa(files: Files) -> Iterator[Record]:
    """PubMedQA's 1,000 questions with expert labels; the demonstration is the paper's conclusion.

    Jin et al., EMNLP-IJCNLP 2019.
    """
    for pmid, row in json.loads(files["questions"].read_text("utf-8")).items():
        label = row["final_decision"]
        prompt = ABSTRACT_PROMPT.format(
            abstract=" ".join(row["CONTEXTS"]), question=row["QUESTION"]
        )
        yield {
            "id": f"pubmedqa-{pmid}",
            "prompt": one_turn(prompt),
            "demonstration": f"{row['LONG_ANSWER']}\nFinal answer: {label}",
            "answer": label,
            "meta": {"year": row["YEAR"], "scoring": "final_answer_label"},
        }


def huatuo(files: Files) -> Iterator[Record]:
    """HuatuoGPT-o1's open questions; the demonstration is the thought, a blank line, the response.

    Chen et al., arXiv 2412.18925.
    """
    rows = json.loads(files["questions"].read_text("utf-8"))
    for index, row in enumerate(rows):
        left = len(rows) - index
        split = "train" if left > 2 * NUM_HELD_OUT else "validation"
        yield {
            "split": "test" if left <= NUM_HELD_OUT else split,
            "id": f"huatuo-{index}",
            "prompt": one_turn(row["Question"]),
            "demonstration": f"{row['Complex_CoT']}\n\n{row['Response']}",
            "answer": row["Response"],
        }
