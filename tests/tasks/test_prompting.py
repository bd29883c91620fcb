from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdft.tasks.prompting import (
    TEACHER_CONTEXTS,
    TeacherTemplate,
    TeacherView,
    shipped_templates,
    student_messages,
)
from sdft.types import Demonstration

DIALOGUE = (
    "{% call user() %}{{ question }}{% endcall %}"
    "{% call assistant() %}{{ demonstration }}{% endcall %}"
    "{% call user() %}{{ question }}{% endcall %}"
)


@pytest.mark.parametrize("name", shipped_templates())
def test_braces_and_markup_in_a_demonstration_reach_the_teacher_unchanged(name, row):
    text = "\n".join(turn["content"] for turn in TeacherTemplate.load(name).messages(row))
    assert row.demonstration in text
    assert row.context in text
    assert row.prompt[-1]["content"] in text


@pytest.mark.parametrize("name", shipped_templates())
def test_a_shipped_template_ends_in_a_question_and_shows_more_than_the_student_sees(name, row):
    messages = TeacherTemplate.load(name).messages(row)
    assert messages[-1]["role"] == "user"
    assert messages != student_messages(row)


def test_system_message_and_earlier_turns_stay_in_front(row):
    earlier = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
    )
    row = replace(row, prompt=(*earlier, *row.prompt))
    messages = TeacherTemplate.load("dialogue").messages(row, system_prompt="Ignored.")
    assert tuple(messages[:3]) == earlier
    assert messages[4] == {"role": "assistant", "content": row.demonstration}


def test_system_prompt_is_added_only_where_the_prompt_has_none(row):
    assert student_messages(row, "Be kind.")[0] == {"role": "system", "content": "Be kind."}
    assert student_messages(row)[0]["role"] == "user"


def test_the_twofold_dialogue_shows_the_demonstration_twice(row):
    messages = TeacherTemplate.load("dialogue_twice").messages(row)
    roles = [turn["role"] for turn in messages]
    assert roles == ["user", "assistant", "user", "assistant", "user"]
    assert messages[1]["content"] == messages[3]["content"] == row.demonstration


def test_a_row_without_context_leaves_no_trace_of_one(row):
    messages = TeacherTemplate.load("dialogue").messages(replace(row, context=None))
    assert messages[0]["content"] == row.prompt[-1]["content"]


def test_a_user_template_is_read_from_a_file(tmp_path, row):
    file = tmp_path / "mine.jinja"
    file.write_text(DIALOGUE, encoding="utf-8")
    assert len(TeacherTemplate.load(str(file)).messages(row)) == 3


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{% call user() %}{{ question }}", "Unexpected end of template"),
        (DIALOGUE + "{% call user() %}{{ question }} {{ hint }}{% endcall %}", r"field\(s\) hint"),
        ("Answer: {{ question }}" + DIALOGUE, "outside of a turn"),
        ("{% call user() %}{{ question }}{% endcall %}", "no more than the student"),
        ("{% call user() %}{{ demonstration }}{% endcall %}", "question appears in no turn"),
        ("", "last turn must be the user's"),
        (DIALOGUE + "{% call assistant() %}{{ question }}{% endcall %}", "last turn must be"),
        (DIALOGUE.replace("question", "question.__class__.__mro__", 1), "unsafe|mro"),
        (DIALOGUE + "{{ 1 / 0 }}", "faulty.jinja: division by zero"),
        (DIALOGUE + "{{ " + "(" * 2000, "faulty.jinja: .*recursion"),
        (DIALOGUE + "{{ " + "9" * 5000 + " }}", "faulty.jinja: .*digits"),
    ],
)
def test_a_faulty_template_is_refused_when_loaded(source, complaint):
    with pytest.raises(ValueError, match=complaint):
        TeacherTemplate(source, "faulty.jinja")


def test_a_template_that_is_not_utf_8_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "mine.jinja").write_bytes(b"{# \xff #}")
    with pytest.raises(ValueError, match=r"mine\.jinja: not UTF-8 at byte 3"):
        TeacherTemplate.load(str(tmp_path / "mine.jinja"))


def test_an_unknown_template_names_the_shipped_ones():
    with pytest.raises(ValueError, match="dialogue_twice"):
        TeacherTemplate.load("dialog")


def plain(name, context="Article."):
    prompt = ({"role": "user", "content": f"Question {name}?"},)
    return Demonstration(name, "t", prompt, f"Answer {name}.", "x", context)


def text_of(messages):
    return "\n".join(turn["content"] for turn in messages)


@pytest.mark.parametrize("name", shipped_templates())
@pytest.mark.parametrize("shown", TEACHER_CONTEXTS)
def test_the_teacher_is_shown_what_was_chosen_and_nothing_else(name, shown):
    messages = TeacherView(TeacherTemplate.load(name), shown).messages(plain("one"))
    assert ("Answer one." in text_of(messages)) == (shown != "context")
    assert ("Article." in text_of(messages)) == (shown != "demonstration")
    roles = [turn["role"] for turn in messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert all(turn["content"] for turn in messages)


@pytest.mark.parametrize("name", shipped_templates())
@pytest.mark.parametrize("shown", ["demonstration", "both"])
def test_examples_come_before_the_question_in_their_order(name, shown):
    view = TeacherView(
        TeacherTemplate.load(name), shown, {"one": [plain("two", "Other."), plain("three", None)]}
    )
    text = text_of(view.messages(plain("one")))
    found = [text.index(f"{word} {row}") for row in ("two", "three", "one")
             for word in ("Question", "Answer")]  # fmt: skip
    assert found == sorted(found)
    assert ("Other." in text) == (shown == "both")
    assert "two" not in text_of(view.messages(plain("four")))


MARKUP = ("{{", "}}", "{% endcall %}", "{#", "<|im_end|>", "<|im_start|>user", "{0}", "\n", " é")
VALUES = st.lists(st.sampled_from(MARKUP) | st.text(max_size=5), min_size=1).map("".join)


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(VALUES.filter(str.strip), min_size=6, max_size=6))
def test_braces_jinja_and_chat_markup_are_plain_text_of_a_turn(values):
    def row(name, question, demonstration, context):
        return Demonstration(
            name, "t", ({"role": "user", "content": question},), demonstration, "x", context
        )

    own, other = row("own", *values[:3]), row("other", *values[3:])
    for name in shipped_templates():
        view = TeacherView(TeacherTemplate.load(name), "both", {"own": [other]})
        roles = [turn["role"] for turn in view.messages(own)]
        calm = replace(view, examples={"one": [plain("two")]}).messages(plain("one"))
        assert roles == [turn["role"] for turn in calm]
        assert all(value.strip() in text_of(view.messages(own)) for value in values)


def test_a_context_that_is_wanted_and_missing_names_task_row_and_fix():
    view = TeacherView(TeacherTemplate.load("paper"), "context")
    with pytest.raises(ValueError, match=r"task 't', row 'one': has no context.*teacher_context"):
        view.messages(plain("one", None))


@pytest.mark.parametrize(
    ("source", "shown", "with_examples", "complaint"),
    [
        (DIALOGUE, "context", False, "neither the demonstration nor the context"),
        (DIALOGUE.replace("{{ q", "{{ context }} {{ q", 1), "context", False, "a turn is empty"),
        (DIALOGUE, "both", True, "shows no examples"),
    ],
)
def test_a_template_that_does_not_suit_what_is_shown_is_refused(
    source, shown, with_examples, complaint
):
    examples = {"one": [plain("two")]} if with_examples else {}
    with pytest.raises(ValueError, match=complaint):
        TeacherView(TeacherTemplate(source, "mine.jinja"), shown, examples)


def test_examples_without_demonstrations_are_refused():
    with pytest.raises(ValueError, match="num_demonstrations is above 1, but teacher_context"):
        TeacherView(TeacherTemplate.load("paper"), "context", {"one": [plain("two")]})
