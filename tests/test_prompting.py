from dataclasses import replace

import pytest

from sdft.prompting import TeacherTemplate, shipped_templates, student_messages

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
    ],
)
def test_a_faulty_template_is_refused_when_loaded(source, complaint):
    with pytest.raises(ValueError, match=complaint):
        TeacherTemplate(source, "faulty.jinja")


def test_an_unknown_template_names_the_shipped_ones():
    with pytest.raises(ValueError, match="dialogue_twice"):
        TeacherTemplate.load("dialog")
