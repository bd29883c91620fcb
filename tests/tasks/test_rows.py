import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft.runs.jsonl import MAX_DEPTH, MAX_LINE_BYTES
from sdft.tasks.rows import read_rows
from sdft.types import Demonstration

FUZZ = settings(deadline=None, max_examples=100, database=None)
ROW = {"id": "a", "prompt": "Which team?", "demonstration": "parcels", "answer": "parcels"}
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "parcels"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train.jsonl"


def read(path, *lines, needs_demonstration=True, context_field=None):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), "utf-8")
    return read_rows(
        path, "mine", needs_demonstration=needs_demonstration, context_field=context_field
    )


def test_a_full_row_becomes_a_demonstration(path):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Which team?"},
    ]
    meta = {"source": {"line": 3}}
    extra = {"prompt": messages, "task": "theirs", "context": "An article.", "meta": meta}
    assert read(path, {**ROW, **extra}) == [
        Demonstration("a", "mine", tuple(messages), "parcels", "parcels", "An article.", meta)
    ]


def test_a_prompt_string_becomes_one_user_message(path):
    (row,) = read(path, ROW)
    assert row.prompt == ({"role": "user", "content": "Which team?"},)
    assert row.context is None


def test_a_chat_is_split_before_its_last_reply(path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Which team?"},
    ]
    plain, scored = read(
        path, {"messages": [*turns, REPLY]}, {"messages": [USER, REPLY], "answer": 3}
    )
    assert plain == Demonstration("train-1", "mine", tuple(turns), "parcels", "parcels")
    assert scored == Demonstration("train-2", "mine", (USER,), "parcels", 3)


def test_an_id_may_be_left_out_or_be_a_number(path):
    without_id = {name: value for name, value in ROW.items() if name != "id"}
    rows = read(path, without_id, "", {**ROW, "id": 7}, without_id)
    assert [row.id for row in rows] == ["train-1", "7", "train-4"]


def test_blank_lines_line_ends_and_a_byte_order_mark_do_not_matter(path):
    path.write_bytes(b"\xef\xbb\xbf\r\n" + json.dumps(ROW).encode() + b"\r\n\n")
    assert len(read_rows(path, "mine", needs_demonstration=True)) == 1
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode())
    assert len(read_rows(path, "mine", needs_demonstration=True)) == 1


def test_any_unicode_text_is_kept(path):
    text = "a\u2028b \x85 \U0001f600 {braces} {{ jinja }} \\ud800"
    (row,) = read(path, json.dumps({**ROW, "demonstration": text}, ensure_ascii=False))
    assert row.demonstration == text


def test_only_training_rows_need_a_demonstration(path):
    without = {key: ROW[key] for key in ("id", "prompt", "answer")}
    (absent,) = read(path, without, needs_demonstration=False)
    (empty,) = read(path, {**ROW, "demonstration": ""}, needs_demonstration=False)
    assert absent.demonstration == empty.demonstration == ""


def test_the_context_is_found_by_its_path(path):
    row = {**ROW, "meta": {"page": {"text": "An article."}}}
    assert read(path, row, context_field="meta.page.text")[0].context == "An article."
    with pytest.raises(ValueError, match=r":1: context_field 'meta.doc': there is no 'doc'.*page"):
        read(path, row, context_field="meta.doc")
    with pytest.raises(ValueError, match=r"field 'context': .* is not a string"):
        read(path, row, context_field="meta.page")


def without(name):
    return {key: value for key, value in ROW.items() if key != name}


BAD_ROWS = {
    "truncated": ('{"id": "a", ', "not valid JSON"),
    "two objects": (json.dumps(ROW) * 2, "not valid JSON"),
    "nan": ('{"id": NaN}', "not valid JSON: NaN"),
    "huge integer": (
        json.dumps(ROW)[:-1] + ', "meta": {"x": ' + "9" * 5000 + "}}",
        "not valid JSON",
    ),
    "repeated key": ('{"id": "a", "id": "b"}', "the key 'id' occurs twice"),
    "array": ("[1]", "a list, not a JSON object"),
    "raw nul": (json.dumps({**ROW, "id": "a-b"}).replace("-", "\0"), "not valid JSON"),
    "nul": ({**ROW, "answer": "a\0"}, "field 'answer': holds a NUL"),
    "surrogate": ({**ROW, "demonstration": "a\udc00"}, "field 'demonstration': holds half a surr"),
    "surrogate in a key": ({**ROW, "meta": {"\ud800": 1}}, "field 'meta': holds half a surrogate"),
    "infinite": (json.dumps(ROW)[:-1] + ', "meta": {"x": 1e999}}', "field 'meta': .* not finite"),
    "deep": ({**ROW, "answer": json.loads("[" * MAX_DEPTH * 2 + "]" * MAX_DEPTH * 2)}, "deeper"),
    "very deep": ('{"id": ' + "[" * 200_000, "nested deeper"),
    "chat and prompt": ({**ROW, "messages": [USER, REPLY]}, "both 'messages' and 'prompt'; keep"),
    "chat of one turn": ({"messages": [REPLY]}, "field 'messages': .* not a list of messages with"),
    "chat as text": ({"messages": "Hi"}, "field 'messages': 'Hi' is not a list of messages"),
    "chat without a reply": (
        {"messages": [USER, REPLY, USER]},
        "field 'messages': the last message is the user's; it must be the assistant's",
    ),
    "chat with a bad reply": ({"messages": [USER, "no"]}, "'messages', message 2: 'no' is not an"),
    "chat that calls": (
        {"messages": [USER, {**REPLY, "tool_calls": [{"name": "f"}]}]},
        "has 'tool_calls', and a demonstration is text",
    ),
    "unknown field": ({**ROW, "contxt": "x"}, "unknown field 'contxt'.*'meta'"),
    "null id": ({**ROW, "id": None}, "field 'id' is null"),
    "fraction as id": ({**ROW, "id": 3.5}, "field 'id': 3.5 is not a string"),
    "no prompt": (without("prompt"), "field 'prompt' is missing"),
    "empty prompt": ({**ROW, "prompt": " \n"}, "field 'prompt' is empty"),
    "no messages": ({**ROW, "prompt": []}, "field 'prompt': .* neither"),
    "number as prompt": ({**ROW, "prompt": 3}, "field 'prompt': 3 is neither"),
    "message not an object": ({**ROW, "prompt": ["Hi"]}, "message 1: 'Hi' is not an object"),
    "message with more": (
        {**ROW, "prompt": [{**USER, "weight": 1}]},
        "message 1: unknown field 'weight'; a message has 'role' and 'content', and may have",
    ),
    "unknown role": ({**ROW, "prompt": [{**USER, "role": "robot"}, USER]}, "unknown role 'robot'"),
    "late developer": (
        {**ROW, "prompt": [USER, {**USER, "role": "developer"}, USER]},
        "a developer message after the first message",
    ),
    "picture": (
        {**ROW, "prompt": [{**USER, "content": [{"type": "image", "url": "x"}]}]},
        "message 1: .* is no text part; write",
    ),
    "empty parts": ({**ROW, "prompt": [{**USER, "content": []}]}, "message 1 is empty"),
    "empty message": ({**ROW, "prompt": [USER, {**USER, "content": ""}]}, "message 2 is empty"),
    "reply last": ({**ROW, "prompt": [USER, {**USER, "role": "assistant"}]}, "the assistant's"),
    "late system": ({**ROW, "prompt": [USER, {**USER, "role": "system"}, USER]}, "to the front"),
    "no demonstration": (without("demonstration"), "field 'demonstration' is missing"),
    "empty demonstration": ({**ROW, "demonstration": ""}, "field 'demonstration' is empty"),
    "list as demonstration": ({**ROW, "demonstration": ["x"]}, "field 'demonstration': .* string"),
    "no answer": (without("answer"), "field 'answer' is missing"),
    "empty answer": ({**ROW, "answer": ""}, "field 'answer' is empty"),
    "empty context": ({**ROW, "context": ""}, "field 'context' is empty"),
    "text as meta": ({**ROW, "meta": "x"}, "field 'meta': 'x' is not an object"),
    "number as task": ({**ROW, "task": 3}, "field 'task': 3 is not a string"),
    "repeated id": (ROW, "field 'id': 'a' is also the id of .*train.jsonl:1"),
}


@pytest.mark.parametrize(("line", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_an_error_that_names_file_line_and_field(path, line, message):
    with pytest.raises(ValueError, match=rf"train\.jsonl:2: (?s:.*){message}"):
        read(path, ROW, line)


def test_text_that_is_not_utf_8_is_an_error(path):
    path.write_bytes(json.dumps(ROW).encode() + b'\n{"id": "\xff"}')
    with pytest.raises(ValueError, match=r"train\.jsonl:2: not UTF-8 at byte 8"):
        read_rows(path, "mine", needs_demonstration=True)


def test_a_line_over_the_size_limit_is_an_error(path):
    longest = {**ROW, "context": ""}
    longest["context"] = "x" * (MAX_LINE_BYTES - len(json.dumps(longest)) - 1)
    assert len(read(path, longest, "")) == 1
    with pytest.raises(ValueError, match=r"train\.jsonl:2: the line has more than 4,194,304 bytes"):
        read(path, ROW, "x" * 10_000_000)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_rows_is_an_error(path, text):
    with pytest.raises(ValueError, match=r"train\.jsonl: has no rows"):
        read(path, text)


def test_a_missing_file_is_an_error(path):
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl"):
        read_rows(path, "mine", needs_demonstration=True)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
NEAR_ROWS = st.fixed_dictionaries({}, optional=dict.fromkeys((*ROW, "meta", "x"), JSON_VALUES))
LINES = st.binary(max_size=80) | NEAR_ROWS.map(lambda row: json.dumps({**ROW, **row}).encode())


@FUZZ
@given(st.lists(LINES, max_size=4).map(b"\n".join))
def test_any_file_gives_rows_or_an_error_that_names_it(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    try:
        rows = read_rows(path, "mine", needs_demonstration=True)
    except ValueError as error:
        message = str(error)
        message.encode()
    else:
        message = str(path)
        assert all(row.id and row.demonstration and row.prompt[-1]["content"] for row in rows)
    assert message.startswith(str(path))
