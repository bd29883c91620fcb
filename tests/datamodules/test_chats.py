"""How rows are put to chat templates: nothing lost, nothing changed, one clock, named errors."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from datamodules import ContinualDataModule
from datamodules.chat_options import ChatOptions
from datamodules.tokenization import RowTokenizer
from sdft.model.tiny_model import byte_tokenizer
from sdft.runs.checkpoint_files import ResumeError
from sdft.scorers.judge import Judge
from sdft.tasks.prompting import TeacherTemplate, TeacherView, shipped_templates
from sdft.types import Demonstration
from tests.sample_tasks import write_task
from tests.tasks.test_replies import DATED, QWEN3, STRICT, THOUGHT, tokenizer_with

TEXTS = [
    "  def f(x):\n",
    "\n\n\tindented\n    deeper  \n\n",
    "\u00a0no-break\u2003",
    "plain",
    " {{ braces }} {% endcall %} <|end|> \ue000 ",
]


def read(tokenizer, template="dialogue", shown="both", chat=None, system_prompt=None):
    view = TeacherView(TeacherTemplate.load(template), shown)
    return RowTokenizer(
        tokenizer,
        {"t": view},
        system_prompt=system_prompt,
        max_prompt_tokens=9999,
        overlong="error",
        evaluated_as="student",
        chat=chat,
    )


def row_of(question, demonstration="Lima", context=None):
    prompt = ({"role": "user", "content": question},)
    return Demonstration("row-1", "t", prompt, demonstration, "Lima", context)


@pytest.mark.parametrize("template", shipped_templates())
@pytest.mark.parametrize("text", TEXTS)
def test_student_and_teacher_read_every_text_byte_for_byte(template, text):
    tokenizer = byte_tokenizer()
    row = row_of(text, demonstration=f" d{text}d ", context=f"\tc{text}c\n")
    reader = read(tokenizer, template)
    student = tokenizer.decode(reader.student_prompt(row))
    teacher = tokenizer.decode(reader.teacher_prompt(row))
    assert student == f"<|turn|>user\n{text}<|end|><|turn|>assistant\n"
    for part in (text, row.demonstration, row.context):
        assert part in teacher
    assert tokenizer.decode(reader.demonstration(row)) == row.demonstration + "<|end|>"
    turns = TeacherTemplate.load(template).messages(row)
    edges = (text[:1], text[-1:])
    if template.startswith("dialogue"):
        assert (turns[0]["content"][0], turns[0]["content"][-1]) == ("\t", edges[1])
        assert turns[1]["content"] == row.demonstration
    else:
        assert turns[-1]["content"].startswith(text)


def test_the_templates_own_white_space_is_stripped():
    source = "{% call user() %}\n\n  {{ question }}\n{{ demonstration | trim }}\n{% endcall %}"
    template = TeacherTemplate(source, "mine")
    (turn,) = template.messages(row_of("Where? ", "Lima"))
    assert turn["content"] == "Where? \nLima"


def test_a_teacher_may_have_variables_of_its_own():
    tokenizer = tokenizer_with(QWEN3)
    options = ChatOptions({"enable_thinking": False}, {"enable_thinking": True})
    reader = read(tokenizer, chat=options)
    row = row_of("Where?", THOUGHT)
    assert tokenizer.decode(reader.student_prompt(row)).endswith("<think>\n\n</think>\n\n")
    teacher = tokenizer.decode(reader.teacher_prompt(row))
    assert teacher.endswith("<|im_start|>assistant\n")
    assert f"<|im_start|>assistant\n{THOUGHT}<|im_end|>" in teacher


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"chat_template_kwargs": {"tokenize": True}}, "data.chat_template_kwargs sets 'tokenize'"),
        ({"thought_marks": ["<think>"]}, r"thought_marks is \['<think>'\]; give what a thought"),
        ({"thought_marks": ["", ""]}, "give what a thought begins and ends with"),
        ({"clock": "noon"}, "data.clock is 'noon'; write it as 2026"),
    ],
)
def test_unusable_options_are_refused(tmp_path, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ContinualDataModule([write_task(tmp_path, "one")], byte_tokenizer(), **options)


def test_a_refusal_names_task_split_row_and_the_templates_words(tmp_path):
    spec = write_task(tmp_path, "one")
    with pytest.raises(ValueError, match="refuses it") as caught:
        ContinualDataModule([spec], tokenizer_with(STRICT), system_prompt="Be brief.")
    assert str(caught.value) == (
        "task 'one', train row 'one-train-0': the student's prompt: "
        "the chat template refuses it: System role not supported"
    )


def build(tmp_path, tokenizer, spec=None, **options):
    data = ContinualDataModule(
        [spec or write_task(tmp_path, "one")], tokenizer, teacher_template="dialogue", **options
    )
    data.trainer = SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    return data


def first_prompt(data):
    return data.reader.student_prompt(data.tasks[0].train[0])


def test_a_resumed_run_keeps_the_clock_of_the_run(tmp_path, caplog):
    tokenizer = tokenizer_with(DATED)
    with caplog.at_level(logging.WARNING):
        first = build(tmp_path, tokenizer)
    assert "set data.clock" in caplog.text
    old = build(tmp_path, tokenizer, clock="2020-02-02T10:00")
    assert "02 February 2020, 10:00" in tokenizer.decode(first_prompt(old))
    assert first_prompt(first) != first_prompt(old)
    first.load_state_dict(old.state_dict())
    assert first_prompt(first) == first_prompt(old)
    first.trainer.strategy.broadcast = lambda value: "2021-01-01T00:00:00"
    first.setup("validate")
    assert "01 January 2021" in tokenizer.decode(first_prompt(first))


def test_a_template_that_prints_no_date_needs_no_clock(tmp_path, caplog):
    data = build(tmp_path, byte_tokenizer(), clock="2020-02-02")
    assert data.state_dict()["clock"] is None
    assert "data.clock" not in caplog.text


def test_a_judges_prompt_is_a_template_of_the_run(tmp_path):
    mine = tmp_path / "mine.jinja"
    digests = []
    source = "{{ question }} {{ reference }} {{ answer }}"
    for text in (source, f"Judge: {source}"):
        mine.write_text(text)
        judge = Judge("http://127.0.0.1:1/v1", "m", prompt=str(mine), cache=str(tmp_path / "c"))
        spec = replace(write_task(tmp_path, "one"), scorer="judge_strict", judge=judge)
        digests.append(build(tmp_path, byte_tokenizer(), spec=spec).template_digests)
    differing = [name for name in digests[0] if digests[0][name] != digests[1][name]]
    assert differing == ["judge prompt of one"]


def test_another_template_is_refused_on_resume_with_its_name(tmp_path):
    held = build(tmp_path, byte_tokenizer()).state_dict()
    other = byte_tokenizer()
    other.chat_template += " "
    data = build(tmp_path, other)
    with pytest.raises(ResumeError, match=r"a template is not .* differ: chat template: "):
        data.load_state_dict(held)
    data.trainer.state.fn = TrainerFn.VALIDATING
    data.load_state_dict(held)
    mine = tmp_path / "mine.jinja"
    source = "{% call user() %}{{ question }} {{ demonstration }}{% endcall %}"
    digests = []
    for text in (source, source.replace(" ", "\n", 1), source):
        mine.write_text(text)
        spec = [write_task(tmp_path, "one")]
        made = ContinualDataModule(spec, byte_tokenizer(), teacher_template=str(mine))
        digests.append(made.template_digests)
    assert digests[0] == digests[2] != digests[1]
