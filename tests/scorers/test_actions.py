import itertools

import pytest

from sdft.scorers.actions import ActionInput, ActionName, read_actions
from sdft.scorers.scorer_registry import SCORERS
from sdft.types import Demonstration


def make_row(answer=None, accepted=None):
    prompt = ({"role": "user", "content": "?"},)
    meta = {} if accepted is None else {"accepted": accepted}
    return Demonstration("row-7", "task", prompt, "", answer, meta=meta)


GOLD = [
    {"Action": "rates.get", "Action_Input": '{"base": "SGD"}'},
    {"Action": "convert", "Action_Input": {"amount": 340, "options": {"round": True}}},
]


def action_input(completion):
    return SCORERS["action_input"](completion, make_row(GOLD))


def accepted_calls(completion, accepted):
    return SCORERS["accepted_calls"](completion, make_row(accepted=accepted))


def write(*calls):
    return "\n".join(f"Action: {name}\nAction Input: {arguments}" for name, arguments in calls)


RATES = ("rates.get", '{"base": "SGD"}')
CONVERT = ("convert", '{"options": {"round": true}, "amount": 340}')


def test_names_and_inputs_are_read_in_order():
    text = 'Go.\nAction: a-b.c\nAction Input: {"x": "Action: d }"}\nAction: e\nAction Input: no'
    assert list(read_actions(text)) == [
        ActionName("a-b.c"),
        ActionInput({"x": "Action: d }"}),
        ActionName("e"),
    ]


def test_an_input_that_never_closes_ends_the_reading():
    text = 'Action: a\nAction Input: {"x": {\nAction: b\nAction Input: {}'
    assert list(read_actions(text)) == [ActionName("a"), ActionInput(None)]


@pytest.mark.parametrize(
    "completion",
    [
        write(RATES, CONVERT),
        write(CONVERT, RATES),
        "Thought: first the rates.\n" + write(RATES) + "\nThen\n" + write(CONVERT) + "\nDone.",
        write(("rates.get", CONVERT[1]), ("convert", RATES[1])),  # not checked by the rule
        write(RATES, CONVERT) + "\nAction Input: {broken}",
        write((f"`{RATES[0]}`", f"```json\n{RATES[1]}\n```"), (CONVERT[0], f"`{CONVERT[1]}`")),
        "**Action:** rates.get\n**Action Input:** " + RATES[1] + "\n" + write(CONVERT),
    ],
)
def test_action_input_compares_names_and_merged_inputs(completion):
    assert action_input(completion) == 1


@pytest.mark.parametrize(
    "completion",
    [
        "",
        write(RATES),
        write(RATES, RATES, CONVERT),
        write(RATES, ("convert", '{"options": {"round": true}, "amount": "340"}')),
        write(RATES, ("convert", '{"options": {"round": false}, "amount": 340}')),
        write(RATES, CONVERT, ("convert", "{}")),
        write(RATES, ("converts", CONVERT[1])),
    ],
)
def test_action_input_rejects_other_calls(completion):
    assert action_input(completion) == 0


def test_accepted_calls_compares_values_as_the_leaderboard_does():
    accepted = [{"f.g": {"city": ["New York, NY"], "n": [5], "unit": ["", "km"]}}]
    for arguments in (
        '{"city": "new-york NY", "n": 5.0}',
        '{"unit": "KM", "n": 5, "city": "NewYorkNY"}',
    ):
        assert accepted_calls(write(("f.g", arguments)), accepted) == 1
    for arguments in (
        '{"city": "Boston", "n": 5}',
        '{"city": "New York NY", "n": "5"}',
        '{"city": "New York NY"}',
        '{"city": "New York NY", "n": 5, "unit": "m"}',
        '{"city": "New York NY", "n": 5, "colour": "red"}',
    ):
        assert accepted_calls(write(("f.g", arguments)), accepted) == 0


def test_accepted_calls_compares_lists_and_objects_in_depth():
    accepted = [
        {"f": {"x": [[1, "a"], ["b"]], "o": [{"k": ["v", "w"], "opt": ["", 1]}], "t": [True]}}
    ]
    assert (
        accepted_calls(write(("f", '{"x": [1.0, "A"], "o": {"k": "w"}, "t": true}')), accepted) == 1
    )
    assert (
        accepted_calls(write(("f", '{"x": ["a", 1], "o": {"k": "w"}, "t": true}')), accepted) == 0
    )
    assert accepted_calls(write(("f", '{"x": ["b"], "o": {"opt": 1}, "t": true}')), accepted) == 0
    assert accepted_calls(write(("f", '{"x": ["b"], "o": {"k": "v"}, "t": 1}')), accepted) == 0


def test_accepted_calls_finds_a_pairing_in_any_order():
    # The first gold call takes every value, so a greedy pairing would fail for some orders.
    accepted = [{"f": {"x": [1, 2, 3]}}, {"f": {"x": [1, 2]}}, {"f": {"x": [1]}}]
    for values in itertools.permutations([1, 2, 3]):
        completion = write(*(("f", f'{{"x": {value}}}') for value in values))
        assert accepted_calls(completion, accepted) == 1
    assert accepted_calls(write(*[("f", '{"x": 3}')] * 3), accepted) == 0
    assert accepted_calls(write(*[("f", '{"x": 1}')] * 2), accepted) == 0


@pytest.mark.parametrize(
    "answer", ["f", [3], [{"Action": "f"}], [{"Action": "f", "Action_Input": "{"}], [{"Action": 1}]]
)
def test_gold_actions_of_another_form_are_an_error(answer):
    with pytest.raises(ValueError, match="row 'row-7': the scorer 'action_input' needs "):
        SCORERS["action_input"]("", make_row(answer))


@pytest.mark.parametrize("accepted", [None, "f", [{"f": {"x": 1}}], [{"f": {}, "g": {}}], [{}] * 2])
def test_accepted_values_of_another_form_are_an_error(accepted):
    with pytest.raises(ValueError, match="row 'row-7': the scorer 'accepted_calls' needs "):
        accepted_calls("", accepted)


def test_more_gold_calls_than_can_be_paired_are_an_error():
    with pytest.raises(ValueError, match="at most 64 calls"):
        accepted_calls("", [{"f": {}}] * 65)
