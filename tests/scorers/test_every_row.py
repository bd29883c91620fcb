"""What every scorer says of every prepared row: the gold, another row's gold, the prompt."""

import itertools
import json
from dataclasses import replace

import pytest

from sdft.scorers.scorer_registry import MIN_QUESTION, SCORER_OF_SCORING, SCORERS
from sdft.tasks.rows import read_rows
from tests.conftest import SHARED_DATA

pytestmark = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason=f"there are no prepared data sets in {SHARED_DATA}"
)

NOT_ROWS = {"documents.jsonl"}
OUTSIDE = {"python_tests", "ifeval"}  # scored by lm-evaluation-harness
FILES = [
    f"{path.parent.name}/{path.name}"
    for path in sorted(SHARED_DATA.glob("*/*.jsonl"))
    if path.name not in NOT_ROWS
]
# Every scorer that a folder's rows suit, besides the one that they name.
LABELS = ["exact_label", "first_token_label", "exact_match", "contains", "token_f1"]
FACTS = ["exact_match", "contains", "token_f1", "squad_exact_match", "squad_f1"]
ALSO = {
    "small_banking77": LABELS,
    "small_clinc_domain": ["exact_match", "contains", "token_f1"],
    "medical_pubmedqa": ["exact_match", "contains"],
    "knowledge_wiki2023bio": FACTS,
    "science_chemistry": ["multiple_choice", "first_letter", "published_multiple_choice"],
    "tooluse_toolalpaca": ["published_action_input"],
    "tooluse_bfcl": ["action_input"],
}


WORDS_IN_COMMON = ("token_f1", "squad_f1")
# ToolAlpaca's released rule cuts objects in objects, and takes a mark for a part of a name.
CUT_BY_THE_PUBLISHED_RULE = {
    "toolalpaca-test-26", "toolalpaca-test-33", "toolalpaca-train-aviationapi-4",
}  # fmt: skip


def written(name, row):
    """The gold answer as a completion of the form that the scorer reads."""
    if name in ("action_input", "published_action_input", "accepted_calls", "json_equal"):
        return row.demonstration
    if name == "published_multiple_choice":
        return f"<answer>{row.answer}</answer>"
    return str(row.answer)


def cases():
    for file in FILES:
        rows = read_rows(SHARED_DATA / file, "rows", needs_demonstration=False)
        named = {row.meta["scoring"] for row in rows} - OUTSIDE
        also = ALSO.get(file.split("/")[0], [])
        for name in dict.fromkeys([*(SCORER_OF_SCORING[each] for each in named), *also]):
            yield pytest.param(file, name, id=f"{file} {name}")
    for folder in ("tooluse_bfcl", "tooluse_toolalpaca"):
        yield pytest.param(f"{folder}/train.jsonl", "tool_call", id=f"{folder} tool_call")


def rows_for(file, name):
    rows = read_rows(SHARED_DATA / file, "rows", needs_demonstration=False)
    if name != "tool_call":
        return rows
    return [replace(row, answer=python_call(call)) for row in rows for call in row.answer[:1]]


def python_call(call):
    """A call of the rows as Python writes it."""
    given = call["Action_Input"]
    given = json.loads(given) if isinstance(given, str) else given
    return f"{call['Action']}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def is_partly_right(name, gold, other):
    """Whether another row's gold answer says some of what this one's does."""
    if name in WORDS_IN_COMMON:
        return bool(set(gold[0]) & set(other[0]))
    return name == "contains" and f" {' '.join(gold[0])} " in f" {' '.join(other[0])} "


def failures(name, rows):
    scorer = SCORERS[name]
    golds = [scorer.gold(row) for row in rows]
    for (row, gold), (other, other_gold) in itertools.pairwise(zip(rows, golds, strict=True)):
        question, right = row.question, written(name, row)
        if scorer(right, row) != 1:
            yield "gold", row.id
        differ = other.answer != row.answer and gold != other_gold
        differ = differ and not is_partly_right(name, gold, other_gold)
        if differ and scorer(written(name, other), row) != 0:
            yield "gold of another", row.id
        if name != "squad_f1" and scorer(question, row) != 0:
            yield "prompt", row.id  # a question's words may be those of its answer
        if scorer.is_published or len(question) < MIN_QUESTION:
            continue
        if scorer(f"{question}\n{right}", row) != 1:
            yield "prompt and gold", row.id


@pytest.mark.parametrize(("file", "name"), list(cases()) if SHARED_DATA.is_dir() else [])
def test_gold_is_right_and_another_gold_and_the_prompt_are_wrong(file, name):
    found = set(failures(name, rows_for(file, name)))
    if name == "published_action_input":
        assert found <= {("gold", row) for row in CUT_BY_THE_PUBLISHED_RULE}
    else:
        assert found == set()


def test_no_scorer_is_left_out():
    tried = {case.values[1] for case in cases()}
    assert tried == set(SCORERS) - {"final_number", "tagged_answer"}  # of which there are no rows
