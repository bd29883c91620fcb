"""What reads untrusted text, each with arbitrary input and what must hold of its output.

``test_fuzz.py`` runs a few cases of each, ``benchmarks/fuzz.py`` as many as asked for.
"""

from __future__ import annotations

import json
import signal
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdft.loss.preambles import Preambles
from sdft.model.chat_template import ChatTemplateError
from sdft.model.tiny_model import SPECIAL_TOKENS, byte_tokenizer
from sdft.scorers.answer_text import answer_texts
from sdft.scorers.json_objects import first_object
from sdft.scorers.normalisation import bare, words
from sdft.scorers.scorer_registry import SCORERS
from sdft.scorers.tool_calls import parse_call
from sdft.tasks.columns import check_columns
from sdft.tasks.encoding import Encoder
from sdft.tasks.hub import kept_indices, rows_from_dataset
from sdft.tasks.prompting import TeacherTemplate, TeacherView, shipped_templates
from sdft.tasks.retrieval import choose_examples
from sdft.tasks.rows import read_rows
from sdft.tasks.task_spec import TaskSpec
from sdft.types import Demonstration
from tests.scorers.test_scorers import make_row
from tests.tasks.test_replies import CHATML, DEEPSEEK, QWEN3, tokenizer_with

SECONDS_PER_CASE = 60  # far more than any case takes on a busy machine; a hang takes for ever

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)


@dataclass(frozen=True)
class Target:
    """A reader of untrusted text: its inputs, and the check that fails where it misbehaves."""

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]
    share: float = 1.0  # of the cases asked for, where a case is slow

    def run(self, num_cases: int) -> None:
        """Check ``num_cases`` inputs; the failing one is printed by the error."""

        @settings(
            max_examples=max(1, round(num_cases * self.share)),
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(self.inputs)
        def check(value: Any) -> None:
            with time_limit(SECONDS_PER_CASE):
                self.check(value)

        check()


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block after that time, in regular expressions too."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"takes more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pieces(*texts: str, max_size: int = 40) -> st.SearchStrategy[str]:
    """Texts of what a parser reacts to, with some arbitrary text between."""
    return st.lists(st.sampled_from(texts) | ANY_TEXT, max_size=max_size).map("".join)


def check_message(error: ValueError, beginning: str) -> None:
    """An error says what it is about, in text that a terminal can print."""
    message = str(error)
    assert message.startswith(beginning), message
    assert len(message) < 5000
    message.encode()


# Rows

ROW = {"id": "a", "prompt": "Which team?", "demonstration": "parcels", "answer": "parcels"}
NEAR_ROWS = st.fixed_dictionaries(
    {"id": st.sampled_from(["a", "b", "c", "d"])},
    optional=dict.fromkeys(["prompt", "demonstration", "answer", "context", "meta", "x"], VALUES),
).map(lambda fields: json.dumps({**ROW, **fields}).encode())


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good row, some bytes of which are others, gone or more."""
    line = bytearray(json.dumps({**ROW, "id": draw(st.sampled_from("abcd"))}).encode())
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(line)))
        line[start : start + draw(st.integers(0, 4))] = draw(st.binary(max_size=3))
    return bytes(line)


def check_rows(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        path.write_bytes(b"\n".join(lines))
        try:
            rows = read_rows(path, "mine", needs_demonstration=True)
        except ValueError as error:
            check_message(error, str(path))
            return
        written = path.read_bytes().decode("utf-8-sig").split("\n")
    records = [json.loads(line) for line in written if line.strip()]
    assert [row.id for row in rows] == [record["id"] for record in records]
    assert len({row.id for row in rows}) == len(rows)
    for row, record in zip(rows, records, strict=True):
        assert (row.demonstration, row.answer) == (record["demonstration"], record["answer"])


def demonstration(answer: Any, meta: Any = None, text: str = "?") -> Demonstration:
    prompt = ({"role": "user", "content": text},)
    return Demonstration("row", "task", prompt, text, answer, text, meta or {})


# Templates

JINJA = pieces(
    "{% call user() %}", "{% call assistant() %}", "{% endcall %}", "{{ question }}", "{{", "}}",
    "{{ demonstration }}", "{% for e in examples %}", "{% endfor %}", "{% if context %}", "{#",
    "#}", "{% endif %}", "{{ 1 / 0 }}", "{{ [1] * 3 }}", "{{ question.x.y }}",
    "{{ ''.__class__ }}", "|int", "{% set x = 1 %}", "{{ 'a'.join }}", "{% include 'x' %}",
    "{{ lipsum() }}", "\n", "{{ '%d' % 'x' }}", "{{ (" , "{{ {}['a'] }}", "{{ 9 ** 9 }}",
    "{{ user }}", "{% raw %}", "{% macro m() %}",
)  # fmt: skip
EXPRESSIONS = pieces(
    "text", "label", " == ", " > ", "1", "'warm'", " and ", "not ", "(", ")", "[", "]", ".x", "/ 0",
    "|length", " in ", "+", "~", "__class__", " if ", " else ", "()", max_size=8,
)  # fmt: skip
DATA = Dataset.from_dict({"text": ["a", "{{ 1 }}"], "label": [1, 2], "self": ["x", "y"]})


def check_template(source: str) -> None:
    try:
        template = TeacherTemplate(source, "mine")
        turns = template.messages(demonstration("x", text="{{ 1 }} {% endcall %}"))
    except ValueError as error:
        check_message(error, "teacher template mine: ")
        return
    assert turns[-1]["role"] == "user"
    assert any("{{ 1 }} {% endcall %}" in turn["content"] for turn in turns)


def check_template_values(text: str) -> None:
    row = demonstration("x", text=text)
    for name in shipped_templates():
        view = TeacherView(TeacherTemplate.load(name), "both")
        turns = view.messages(row)
        calm = view.messages(demonstration("x", text="calm"))
        assert [turn["role"] for turn in turns] == [turn["role"] for turn in calm]
        assert any(text in turn["content"] for turn in turns if turn["role"] == "user")


def check_column_template(source: str) -> None:
    columns = {"prompt": "{{ text }}" + source, "demonstration": "text", "answer": "text"}
    with suppress(ValueError):
        check_columns(columns, "mine")
        rows = rows_from_dataset(DATA, [0], "mine", "train", columns, needs_demonstration=True)
        assert rows[0].prompt[0]["content"].startswith("a")


def check_filter(expression: str) -> None:
    with suppress(ValueError):
        kept = kept_indices(DATA, expression, "mine", "train")
        assert set(kept) <= {0, 1}


# Scorers and parsers

COMPLETIONS = pieces(
    "Action: ", "Action Input: ", "f", "(", ")", "x", "=", '"', "'", "\\", "{", "}", "[", "]", ":",
    ",", "1", "-", ".", "e9", "true", "NaN", " ", "\n", "`", "<answer>", "</answer>", "answer:",
    "B", "the", "The correct answer is", "Final answer:", "maybe", "no", "\0", "\ud800", "\udfff",
    "é", '{"a": 1}', '{"x": [', "f(x=", "\\u00e9", "\\ud83d\\ude00", "9" * 5000, "1e999", "İ", "ß",
)  # fmt: skip
METAS = st.dictionaries(st.sampled_from(["accepted", "choices"]), VALUES)


def check_scorer(name: str, completion: str) -> None:
    row = make_row(name)
    value = SCORERS[name](completion, row)
    assert isinstance(value, float)
    assert 0 <= value <= 1
    assert SCORERS[name](completion, row) == value


def check_gold(name: str, given: tuple[Any, Any, str]) -> None:
    answer, meta, completion = given
    row = demonstration(answer, meta)
    try:
        SCORERS[name].gold(row)
    except ValueError as error:
        check_message(error, f"row 'row': the scorer {name!r} ")
        return
    for text in (completion, json.dumps(answer), str(answer)):
        assert 0 <= SCORERS[name](text, row) <= 1


def check_call(text: str) -> None:
    with suppress(ValueError):
        call = parse_call(text)
        assert call.name in text
        assert all(key in text for key in call.arguments)


def check_object(text: str) -> None:
    found = first_object(text)
    if found is not None:
        assert json.loads(json.dumps(found, allow_nan=True)) == found
    value = {"key": text}
    assert first_object(json.dumps(value)) == value


# Tokens and tasks

TOKENIZER = byte_tokenizer()


def check_encoding(text: str) -> None:
    ids = Encoder(TOKENIZER).encode(text)
    assert not set(ids) & set(TOKENIZER.all_special_ids)
    assert TOKENIZER.decode(ids) == text
    chat = Encoder(TOKENIZER).encode_chat([{"role": "user", "content": text}])
    calm = Encoder(TOKENIZER).encode_chat([{"role": "user", "content": "calm"}])
    assert len(chat) - len(ids) == len(calm) - len("calm")


REPLIERS = {
    name: tokenizer_with(template)
    for name, template in (("chatml", CHATML), ("qwen3", QWEN3), ("deepseek", DEEPSEEK))
}


def check_reply(given: tuple[str, str]) -> None:
    question, text = given
    chat: list[Any] = [{"role": "user", "content": question}]
    for tokenizer in REPLIERS.values():
        encoder = Encoder(tokenizer)
        ids = encoder.encode_reply(chat, text)
        special = [token for token in ids if token in tokenizer.all_special_ids]
        assert special == ids[-1:]
        read = tokenizer.decode(encoder.encode_chat(chat) + ids)
        assert "".join(text.split()) in "".join(read.split())
        shown = [*chat, {"role": "assistant", "content": text}, *chat]
        told = tokenizer.decode(encoder.encode_chat(shown, [text]))
        assert "".join(text.split()) in "".join(told.split())


def is_encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def check_chat_template(source: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    with suppress(ChatTemplateError):
        Encoder(tokenizer).encode_chat([{"role": "user", "content": "calm"}])
        Encoder(tokenizer).encode_reply([{"role": "user", "content": "calm"}], "reply")


def check_answer(given: tuple[str, str, str]) -> None:
    prompt, completion, stop = given
    prompts, completions = ([TOKENIZER(text)["input_ids"]] for text in (prompt, completion))
    marks = ("<think>", "</think>")
    (answer,) = answer_texts(
        TOKENIZER, prompts, completions, stop_strings=(stop,), thought_marks=marks
    )
    assert stop not in answer
    assert marks[1] not in answer
    assert answer in TOKENIZER.decode(completions[0], skip_special_tokens=True)


def check_words(text: str) -> None:
    found = words(text)
    assert words(f"\u00a0{unicodedata.normalize('NFD', text)}\n") == found
    assert bare(bare(text)) == bare(text)
    assert all(word and not word.isspace() for word in found)


def check_preambles(given: tuple[list[str], list[int]]) -> None:
    phrases, completion = given
    with suppress(ValueError):
        (number,) = Preambles(phrases, TOKENIZER).num_tokens([completion])
        assert 0 <= number <= len(completion)


def check_examples(texts: list[str]) -> None:
    rows = [
        Demonstration(str(index), "t", ({"role": "user", "content": text},), "d", "a")
        for index, text in enumerate(texts)
    ]
    for choice in ("random", "retrieved"):
        with suppress(ValueError):
            examples = choose_examples(rows, 1, choice, seed=1)
            assert all(examples[row.id][0].prompt != row.prompt for row in rows)


def check_spec(fields: dict[str, Any]) -> None:
    try:
        spec = TaskSpec(**fields)
    except ValueError as error:
        check_message(error, "task")
        return
    assert (Path("runs") / spec.name).parent == Path("runs")


SPECS = st.fixed_dictionaries(
    {"name": ANY_TEXT | st.sampled_from(["a", "..", "a" * 101])},
    optional={
        **dict.fromkeys(["scorer", "path", "where", "revision", "teacher_context"], ANY_TEXT),
        "hub_id": st.just("owner/name"),
        "generator": st.sampled_from(["routing", "x"]),
        "num_train": st.integers(),
        "columns": st.dictionaries(st.sampled_from(["prompt", "answer", "x"]), JINJA, max_size=3),
        "splits": st.dictionaries(st.sampled_from(["train", "validation", "x"]), ANY_TEXT),
    },
)
ENCODABLE = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "<|", "\ue000", "|>"]) | st.text(max_size=9), max_size=9
).map("".join)

THOUGHTFUL = st.lists(
    st.sampled_from(["<think>", "</think>", "\n", " ", "<think", *SPECIAL_TOKENS])
    | st.text(max_size=6),
    max_size=9,
).map("".join)
CHAT_JINJA = pieces(
    "{% for m in messages %}", "{% endfor %}", "{{ m['content'] }}", "{{ m.content.x.y }}", "{{",
    "{{ messages[0]['content'] }}", "<|turn|>", "<|end|>", "{{ raise_exception('no') }}", "}}",
    "{{ 1 / 0 }}", "{% if add_generation_prompt %}", "{% endif %}", "<think>", "\n",
    "{{ strftime_now('%d') }}", "{{ messages[9] }}", "{% set x = 1 %}", "{{ m | tojson }}",
)  # fmt: skip

TARGETS: dict[str, Target] = {
    "rows": Target(
        st.lists(damaged() | NEAR_ROWS | st.binary(max_size=60), max_size=4), check_rows
    ),
    "teacher_template": Target(JINJA, check_template),
    "template_values": Target(
        (st.text() | JINJA).filter(str.strip), check_template_values, share=0.5
    ),
    "column_template": Target(JINJA, check_column_template, share=0.5),
    "filter": Target(EXPRESSIONS, check_filter, share=0.5),
    "call": Target(COMPLETIONS, check_call),
    "object": Target(COMPLETIONS, check_object),
    "encoding": Target(ENCODABLE, check_encoding, share=0.5),
    "reply": Target(st.tuples(ENCODABLE, THOUGHTFUL.filter(str.strip)), check_reply, share=0.5),
    "chat_template": Target(CHAT_JINJA.filter(is_encodable), check_chat_template, share=0.5),
    "answer": Target(st.tuples(THOUGHTFUL, THOUGHTFUL, st.text(min_size=1)), check_answer),
    "words": Target(COMPLETIONS | st.text(), check_words),
    "preambles": Target(
        st.tuples(
            st.lists(st.text(min_size=1), min_size=1, max_size=3),
            st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40),
        ),
        check_preambles,
        share=0.5,
    ),
    "examples": Target(st.lists(st.text(), min_size=1, max_size=6), check_examples, share=0.2),
    "task_spec": Target(SPECS, check_spec, share=0.5),
    **{f"score {name}": Target(COMPLETIONS, partial(check_scorer, name)) for name in SCORERS},
    **{
        f"gold {name}": Target(
            st.tuples(VALUES | st.lists(ANY_TEXT), METAS, COMPLETIONS), partial(check_gold, name)
        )
        for name in SCORERS
    },
}
