import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft.scorers.scorer_registry import SCORERS
from sdft.scorers.tool_calls import ToolCall, parse_call
from sdft.types import Demonstration

FUZZ = settings(deadline=None, max_examples=100, database=None)


def score(completion, answer):
    prompt = ({"role": "user", "content": "?"},)
    return SCORERS["tool_call"](completion, Demonstration("row-7", "task", prompt, "", answer))


def test_arguments_of_every_type_are_read():
    call = parse_call(
        r"""hotel.book-room(name='O\'Neill, "Jo"', note="a\n\u00e9\ud83d\ude00 (x=1)", nights = 2,
        price=-1.5e2, breakfast=true, view=None, tags=["a", ['b'],], extra={"k": {"l": false}},)"""
    )
    assert call == ToolCall(
        "hotel.book-room",
        {
            "name": 'O\'Neill, "Jo"',
            "note": "a\né😀 (x=1)",
            "nights": 2,
            "price": -150.0,
            "breakfast": True,
            "view": None,
            "tags": ["a", ["b"]],
            "extra": {"k": {"l": False}},
        },
    )


@pytest.mark.parametrize(
    "completion",
    [
        'book(name="Ann", guests=4)',
        "book( guests = 4.0 , name = ' ANN ' )",
        '\n```\nbook(guests=4, name="ann",)\n```\n',
    ],
)
def test_equal_calls_score_one(completion):
    assert score(completion, 'book(name="Ann", guests=4)') == 1
    assert score(completion, {"name": "book", "arguments": {"guests": 4, "name": "Ann"}}) == 1


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "book",
        'Book(name="Ann", guests=4)',
        'book(name="Ann")',
        'book(name="Ann", guests=4, vip=true)',
        'book(name="Ann", guests="4")',
        'book(name="Ann", guests=5)',
        'book(name="Ann", guests=4',
        'book(name="Ann" guests=4)',
        'book(name="Ann", name="Ann", guests=4)',
        'book("Ann", 4)',
        "book(name=Ann, guests=4)",
        'book(name="Ann", guests=4); book(name="Ann", guests=4)',
        'Sure! book(name="Ann", guests=4)',
        'book(name="Ann", guests=4) please',
        'book(name="Ann, guests=4)',
        "book(,)",
    ],
)
def test_anything_but_exactly_that_call_scores_zero(completion):
    assert score(completion, 'book(name="Ann", guests=4)') == 0


def test_truth_values_numbers_and_strings_are_different_values():
    assert score("f(x=true)", "f(x=True)") == 1
    assert score("f(x=1)", "f(x=true)") == 0
    assert score('f(x="true")', "f(x=true)") == 0
    assert score("f(x=[1, 2])", "f(x=[2, 1])") == 0
    assert score("f(x=null)", "f(x=None)") == 1


def test_a_number_too_long_to_convert_scores_zero():
    assert score(f"f(x={'9' * 10_000})", "f(x=9)") == 0


def test_deep_nesting_scores_zero():
    assert score(f"f(x={'[' * 100_000})", "f(x=[])") == 0
    assert score(f"f(x={'[' * 1000}{']' * 1000})", "f(x=[])") == 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@FUZZ
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=3))
def test_a_call_written_with_json_values_is_read_back(arguments):
    written = ", ".join(f"{name}={json.dumps(value)}" for name, value in arguments.items())
    if "Infinity" not in written:
        assert parse_call(f"f({written})") == ToolCall("f", arguments)
        assert score(f"f({written})", {"name": "f", "arguments": arguments}) == 1


@FUZZ
@given(st.text(alphabet="f(x=\"'\\,[]{}: 1.e-tru\n", max_size=40))
def test_the_reader_gives_a_call_or_a_value_error(text):
    try:
        call = parse_call("f(" + text)
    except ValueError:
        return
    assert call.name == "f"


@pytest.mark.parametrize(
    "answer", ["book", 3, None, {"name": "f"}, {"name": "f", "arguments": [1]}, ["f(x=1)"]]
)
def test_a_gold_answer_that_is_no_call_is_an_error(answer):
    with pytest.raises(ValueError, match=r"row 'row-7'.*needs .*call"):
        score("f()", answer)
