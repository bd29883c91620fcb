import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft.scorers.json_objects import first_object, object_at
from sdft.scorers.scorer_registry import SCORERS
from sdft.types import Demonstration

FUZZ = settings(deadline=None, max_examples=100, database=None)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=3)


def score(completion, answer):
    prompt = ({"role": "user", "content": "?"},)
    return SCORERS["json_equal"](completion, Demonstration("row-7", "task", prompt, "", answer))


@FUZZ
@given(OBJECTS, st.text(alphabet="ab \n]}\":,'", max_size=20), st.text(max_size=20))
def test_an_object_is_found_in_any_surrounding_text(value, before, after):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        found, end = object_at(before + text + after, len(before))
        assert found == value
        assert end == len(before + text)
        assert first_object(before + text + after) == value


def test_the_first_braces_that_hold_json_count():
    assert first_object('Use {this}: {"a": 1} {"a": 2}') == {"a": 1}


@pytest.mark.parametrize(
    "text", ["", "none", "[1]", "{", '{"a": 1', "{'a': 1}", '{"a": "}', "}{", '{"a": 1]}']
)
def test_no_object_is_found_where_there_is_none(text):
    assert first_object(text) is None


def test_nesting_and_numbers_beyond_the_limits_are_no_json():
    assert first_object('{"a": ' * 65 + "1" + "}" * 65) is None
    assert first_object('{"a": ' * 64 + "1" + "}" * 64) is not None
    assert first_object('{"a":' + "[" * 100_000 + "]" * 100_000 + "}") is None
    assert first_object('{"a": ' + "9" * 10_000 + "}") is None


GOLD = {"intent": "PlayMusic", "slots": {"artist": "The  Who", "year": "1965", "tags": ["A", "b"]}}


@pytest.mark.parametrize(
    "completion",
    [
        json.dumps(GOLD),
        'Sure: {"slots": {"year": 1965.0, "tags": ["a ", "B"], "artist": "the who"}, '
        '"intent": "PlayMusic"} and {}',
    ],
)
def test_json_equal_ignores_key_order_case_and_white_space(completion):
    assert score(completion, GOLD) == 1
    assert score(completion, json.dumps(GOLD)) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [("year", 1966), ("tags", ["b", "a"]), ("tags", ["a"]), ("artist", ["the who"]), ("more", 1)],
)
def test_json_equal_rejects_other_values(path, value):
    assert score(json.dumps({**GOLD, "slots": {**GOLD["slots"], path: value}}), GOLD) == 0


@FUZZ
@given(OBJECTS)
def test_every_object_equals_itself(value):
    assert score(json.dumps(value), value) == 1


@pytest.mark.parametrize("answer", ["text", "{} {}", "{", [1], 3, None])
def test_a_gold_answer_that_is_no_object_is_an_error(answer):
    with pytest.raises(ValueError, match="row 'row-7': the scorer 'json_equal' needs "):
        score("{}", answer)
