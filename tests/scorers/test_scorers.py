import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft.scorers.scorer_registry import SCORER_OF_SCORING, SCORERS, get_scorer
from sdft.types import Demonstration

FUZZ = settings(deadline=None, max_examples=100, database=None)

ANSWERS = {
    "exact_label": "credit cards",
    "first_token_label": "card_arrival",
    "multiple_choice": "B",
    "first_letter": "B",
    "tool_call": 'f(x="1", y=[2])',
    "action_input": [{"Action": "f", "Action_Input": '{"x": 1}'}],
    "published_multiple_choice": "B",
    "published_action_input": [{"Action": "f", "Action_Input": {"x": 1}}],
    "accepted_calls": None,
    "json_equal": {"a": {"b": [1, "c"]}},
    "exact_match": "February 16, 2002.",
    "contains": ["New York", "NYC"],
    "token_f1": "the red fox",
    "final_answer": "maybe",
    "final_number": "He has 3 + 4 = 7. #### 7",
    "squad_exact_match": "February 16, 2002.",
    "squad_f1": ["New York", "NYC"],
    "tagged_answer": "tea",
}
CALL = 'Action: f\nAction Input: {"x": 1}'
RIGHT = {
    "action_input": CALL,
    "published_action_input": CALL,
    "published_multiple_choice": "<answer>B</answer>",
    "accepted_calls": CALL,
    "json_equal": '{"a": {"b": [1, "c"]}}',
    "tagged_answer": "Pour hot water over the tea. [topic: tea]",
}
EVERY_SCORER = pytest.mark.parametrize("name", list(SCORERS))

# Pieces the parsers react to, so that random text reaches their inner branches.
PIECES = st.sampled_from([
    "Action: ", "Action Input: ", "f", "(", ")", "x", "=", '"', "'", "\\", "{", "}", "[", "]", ":",
    ",", "1", "-", ".", "e9", "true", " ", "\n", "`", "<answer>", "</answer>", "answer:", "B",
    "the", "The correct answer is", "Final answer:", "maybe", "no", "\0", "\ud800", "\udfff", "é",
])  # fmt: skip
ANY_CHARACTER = st.characters(codec=None, exclude_categories=())
COMPLETIONS = st.text(ANY_CHARACTER) | st.lists(PIECES, max_size=60).map("".join)


def make_row(name):
    prompt = ({"role": "user", "content": "?"},)
    meta = {"accepted": [{"f": {"x": [1, ""], "y": [[{"k": ["v"]}], ""]}}], "choices": list("wxyz")}
    return Demonstration("row-7", "task", prompt, "", ANSWERS[name], meta=meta)


@EVERY_SCORER
def test_any_text_gets_a_score_between_zero_and_one(name):
    row = make_row(name)

    @FUZZ
    @given(COMPLETIONS)
    def check(completion):
        value = SCORERS[name](completion, row)
        assert isinstance(value, float)
        assert 0 <= value <= 1

    check()


UNITS = [
    '{"',
    '{"a":[',
    "Action Input: {",
    'f(x="\\',
    "the answer is ",
    "Final answer:",
    "<answer>",
    "1 ",
    "-\u0301\u0323",
    "####",
    "\u6771",
]


def check_linear(name, unit, length):
    completion = unit * (length // len(unit))
    start = time.process_time()
    value = SCORERS[name](completion, make_row(name))
    assert 0 <= value <= 1
    assert time.process_time() - start < 30  # a quadratic scan takes hours


@EVERY_SCORER
def test_a_megabyte_of_any_opening_is_scored_in_linear_time(name):
    for unit in UNITS:
        check_linear(name, unit, 1_000_000)


@EVERY_SCORER
def test_ten_megabytes_are_scored_in_linear_time(name):
    check_linear(name, 'f(x="\\', 10_000_000)


@EVERY_SCORER
def test_an_unsuitable_gold_answer_is_an_error_when_rows_are_checked(name):
    get_scorer(name).gold(make_row(name))
    bad = Demonstration("row-7", "task", make_row(name).prompt, "", False)
    with pytest.raises(ValueError, match=f"row 'row-7': the scorer '{name}' needs "):
        get_scorer(name).gold(bad)


@EVERY_SCORER
def test_every_scorer_states_its_rule(name):
    assert SCORERS[name].compare.__doc__
    assert get_scorer(name).name == name


@EVERY_SCORER
def test_the_question_repeated_is_no_answer_and_what_follows_it_is_one(name):
    row = make_row(name)
    right = RIGHT.get(name, row.answer)
    right = right[0] if isinstance(right, list) else right
    assert SCORERS[name](right, row) == 1
    question = f"Some question of several words, whose answer may be: {right}"
    asked = replace(row, prompt=({"role": "user", "content": question},))
    if not SCORERS[name].is_published:
        assert SCORERS[name](question, asked) == 0
        assert SCORERS[name](f" {question}\n{right}", asked) == 1
    short = replace(row, prompt=({"role": "user", "content": right[:19]},))
    assert SCORERS[name](right, short) == 1


def test_an_unknown_scorer_is_an_error_that_lists_all():
    with pytest.raises(
        ValueError, match=r"unknown scorer 'f1'; use one of exact_label, .*token_f1"
    ):
        get_scorer("f1")


def test_every_scoring_name_leads_to_a_scorer():
    assert set(SCORER_OF_SCORING.values()) <= set(SCORERS)


@FUZZ
@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_gold_answer_is_accepted_or_a_value_error(answer):
    for name in SCORERS:
        row = Demonstration("row-7", "task", make_row(name).prompt, "", answer)
        try:
            get_scorer(name).gold(row)
        except ValueError:
            continue
        assert 0 <= SCORERS[name](json.dumps(answer), row) <= 1
