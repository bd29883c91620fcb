import json

import pytest

from callbacks import AnswerLog
from callbacks.answer_log import _lines
from sdft.evaluation.measures import further_measures, macro_f1
from sdft.scorers.json_objects import intent_equal, slot_f1
from sdft.scorers.published_rules import published_action_input, published_gold
from sdft.scorers.scorer_registry import SCORERS, get_scorer
from sdft.types import Demonstration
from tests.lightning_modules.test_modules import sdft, train


def row(answer):
    return Demonstration("1", "t", ({"role": "user", "content": "?"},), "", answer)


def test_macro_f1_is_the_plain_mean_over_gold_labels():
    golds, predicted = ["a", "a", "a", "b"], ["a", "a", "b", "none"]
    # a: precision 1, recall 2/3; b: nothing right.
    assert macro_f1(predicted, golds) == pytest.approx((2 * 2 / 3 / (5 / 3) + 0) / 2)
    assert macro_f1(golds, golds) == 1
    assert macro_f1([""] * 4, golds) == 0


@pytest.mark.parametrize("name", ["final_answer", "exact_label", "first_token_label"])
def test_a_label_is_what_the_scorer_compares(name):
    scorer = SCORERS[name]
    for text in ("Final answer: Yes.", "yes", "no", "", "maybe so"):
        assert (scorer.label(text) == "yes") == (scorer(text, row("yes")) == 1)


def test_facts_are_reported_by_all_three_rules():
    rows = [row("Lima"), row("Quito")]
    measures = further_measures(get_scorer("contains"), ["It is Lima", "Quito"], rows)
    assert measures == {
        "exact_match": 0.5,
        "contains": 1.0,
        "token_f1": pytest.approx((2 * 1 / 4 + 1) / 2),
    }


@pytest.mark.parametrize(
    ("completion", "intent", "f1"),
    [
        ('{"intent": "play", "slots": {"artist": "Can", "year": ["1971", "1972"]}}', 1, 1),
        ('{"intent": "Play", "slots": {"artist": "can", "year": "1972"}}', 1, 2 * 2 / 5),
        ('{"intent": "stop", "slots": {}}', 0, 0),
        ('{"slots": 3}', 0, 0),
        ("nothing", 0, 0),
    ],
)
def test_a_call_has_an_intent_and_slots(completion, intent, f1):
    gold = {"intent": "play", "slots": {"artist": "Can", "year": ["1971", "1972"]}}
    assert intent_equal(completion, gold) == intent
    assert slot_f1(completion, gold) == pytest.approx(f1)


def test_no_slots_where_none_are_wanted_is_right():
    assert slot_f1('{"intent": "stop", "slots": {}}', {"intent": "stop", "slots": {}}) == 1


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ('Action: get\nAction Input: {"a": 1}', 1),
        ('Action Input: {"a": 1} Action: get', 1),
        ('Action: get\nAction Input: {"a": "1"}', 0),
        ('Action: get\nAction: get\nAction Input: {"a": 1}', 0),
        ("Action: get\nAction Input: {", 0),
        ("Action Input: {" * 10_000, 0),
        ("", 0),
    ],
)
def test_the_published_tool_rule(completion, score):
    gold = published_gold(row([{"Action": "get", "Action_Input": {"a": 1}}]))
    assert published_action_input(completion, gold) == score


def test_the_published_rule_cuts_nested_objects_and_the_other_does_not():
    nested = row([{"Action": "get", "Action_Input": {"a": {"b": 1}}}])
    completion = 'Action: get\nAction Input: {"a": {"b": 1}}'
    assert get_scorer("published_action_input")(completion, nested) == 0
    assert get_scorer("action_input")(completion, nested) == 1


def test_a_mark_in_front_of_a_gold_name_is_no_part_of_it():
    marked = row([{"Action": "[Optional]get", "Action_Input": {}}])
    completion = "Action: get\nAction Input: {}"
    assert get_scorer("action_input")(completion, marked) == 1
    assert get_scorer("published_action_input")(completion, marked) == 0


def test_a_completion_is_logged_where_it_is_more_than_the_answer():
    rows = (row("Lima"), row("Lima"))
    answered = ("t", rows, ["Lima", "Lima"], [1.0, 1.0], ["Lima", "<think>?</think>Lima"])
    first, second = map(json.loads, _lines(answered).splitlines())
    assert first["answer"] == second["answer"] == "Lima"
    assert "completion" not in first
    assert second["completion"] == "<think>?</think>Lima"


def test_every_answer_of_every_evaluation_is_written(tmp_path):
    train(sdft(), tmp_path, AnswerLog())
    names = sorted(path.name for path in (tmp_path / "answers").iterdir())
    assert names == [f"{name}{end}" for name in ("stage-0", "stage-1", "stage-2", "test")
                     for end in (".json", ".jsonl")]  # fmt: skip
    lines = (tmp_path / "answers" / "stage-2.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["task"] for entry in entries] == ["one"] * 3 + ["two"] * 3
    assert all({"id", "score", "answer"} <= set(entry) for entry in entries)
    measures = json.loads((tmp_path / "answers" / "test.json").read_text())
    assert {task: set(values) for task, values in measures.items()} == {
        "one": {"macro_f1"},
        "two": {"macro_f1"},
    }
