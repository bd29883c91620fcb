import ast
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
        '```python\nbook(name="Ann", guests=4)\n```',
        "book(name='''Ann''', guests=0x4)",
        "book(name='A' \"nn\", guests=(4))",
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
        "book('Ann', guests=4)",
        "book(guests=4, 'Ann')",
    ],
)
def test_anything_but_exactly_that_call_scores_zero(completion):
    assert score(completion, 'book(name="Ann", guests=4)') == 0


LITERALS = [
    "()", "(1,)", "(1, 'a')", "[(45.76, 4.85), (48.85, 2.35)]", "{1, 2, 3}", "{'a': {2: (3,)}}",
    "{(1, 2): 'x', None: True}", "1_000", "0x_ff", "0b101", "0o17", "-1.5e-3", ".5", "1.", "3j",
    "-1-2.5j", r"b'\x00a'", r"rb'\d'", r"r'C:\dir'", r"'\d+'", "\"a\" 'b' \"\"", "u'x'",
    '"""two\nlines, "quoted\\""""', "'''it's'''", r"'\x41\101\N{BULLET}\U0001F600'", "'a\\\nb'",
    "...", "None", "((2))", "[[], [()]]", "''", "-0.0", "+7",
]  # fmt: skip


@pytest.mark.parametrize("text", LITERALS)
def test_pythons_literals_are_read_as_python_reads_them(text):
    expected = ast.literal_eval(text)
    (value,) = parse_call(f"f({text})").positional
    assert value == expected
    assert isinstance(value, (type(expected), frozenset))
    assert parse_call(f"f(x={text})").arguments == {"x": expected}
    assert score(f"f(x={text})", f"f( x = {text}, )") == 1


@FUZZ
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
        max_leaves=5,
    )
)  # fmt: skip
def test_what_python_writes_is_read_back(value):
    assert parse_call(f"f(x={value!r})").arguments == {"x": value}
    assert score(f"f(x={value!r})", f"f(x={value!r})") == 1


def test_nested_calls_are_values():
    text = "plan(trip(days=[date(2024, 1, 2)], to='Rome'), limit=money('EUR', 5))"
    assert parse_call(text) == ToolCall(
        "plan",
        {"limit": ToolCall("money", {}, ("EUR", 5))},
        (ToolCall("trip", {"days": [ToolCall("date", {}, (2024, 1, 2))], "to": "Rome"}),),
    )
    assert score(text, text.replace("Rome", " rome ").replace("2)", "2.0 ,)")) == 1
    assert score(text, text.replace("date(2024", "date(2025")) == 0
    assert score(text, text.replace("money(", "Money(")) == 0
    assert score(text.replace("limit=", ""), text) == 0


def test_a_tuple_is_a_list_and_a_set_has_no_order():
    assert score("f(x=(1, 'A'))", {"name": "f", "arguments": {"x": [1, "a"]}}) == 1
    assert score("f(x={'A', 'b'})", "f(x={'B', 'a'})") == 1
    assert score("f(x={1, 2})", "f(x=[1, 2])") == 0
    assert score("f(x={True})", "f(x={1})") == 0


@pytest.mark.parametrize(
    "text",
    ["f(x={[1]: 2})", "f(x={g(): 2})", "f(x={1: 2, 1: 3})", "f(x={1, [2]})", "f(b'a' 'b')",
     "f(b'\u0101')", "f(f'{x}')", "f(x=01__2)", "f(0xg)", "f(1+2)", "f(a.b)", "f(*x)"],
)  # fmt: skip
def test_what_is_no_literal_is_refused(text):
    with pytest.raises(ValueError, match="expected "):
        parse_call(text)


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
