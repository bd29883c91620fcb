import pytest

from sdft.model.chat_template import THOUGHT_MARKS
from sdft.scorers.answer_text import answer_texts
from sdft.scorers.scorer_registry import SCORERS
from sdft.types import Demonstration
from tests.tasks.test_replies import CHATML, SPECIAL, tokenizer_with

TOKENIZER = tokenizer_with(CHATML)


def answer(completion, prompt="Where?", *, tokenizer=TOKENIZER, marks=THOUGHT_MARKS, stops=()):
    prompts, completions = ([tokenizer(text)["input_ids"]] for text in (prompt, completion))
    (found,) = answer_texts(
        tokenizer, prompts, completions, stop_strings=stops, thought_marks=marks
    )
    return found


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("Bogot\u00e1<|im_end|>", "Bogot\u00e1"),
        ("<think>Lima?</think>\n\nBogot\u00e1<|im_end|>", "Bogot\u00e1"),
        ("<think>Lima?", ""),
        ("Lima, I think", "Lima, I think"),
        ("a</think>b</think>c", "c"),
        ("a</think> <think>b", "<think>b"),
    ],
)
def test_the_answer_follows_the_thought(completion, expected):
    assert answer(completion) == expected


def test_a_thought_that_the_prompt_opens_is_no_answer_until_it_ends():
    assert answer("Lima", "Where?<think>\n") == ""
    assert answer("Lima?\n</think>\n\nBogot\u00e1", "Where?<think>\n") == "Bogot\u00e1"
    assert answer("Lima", "<think>\n\n</think>\n\n") == "Lima"


def test_marks_are_the_models_own_and_none_keep_thoughts():
    text = "<think>Lima?</think>Bogot\u00e1"
    assert answer(text, marks=()) == text
    assert answer("<r>Lima?</r> Bogot\u00e1", marks=("<r>", "</r>")) == "Bogot\u00e1"
    special = tokenizer_with(CHATML, SPECIAL | {"[THINK]", "[/THINK]"})
    options = {"tokenizer": special, "marks": ("[THINK]", "[/THINK]")}
    assert answer("[THINK]Lima?[/THINK]\n\nBogot\u00e1<eos>", **options) == "Bogot\u00e1"
    assert answer("[THINK]Lima?", **options) == ""
    assert answer("Bogot\u00e1", **options) == "Bogot\u00e1"
    assert answer("[THINK]Lima?[/THINK]Bogot\u00e1", tokenizer=special, marks=()) == (
        "Lima?Bogot\u00e1"
    )


def test_marks_may_be_several_special_tokens():
    marks = ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
    thought = "<|channel|>analysis<|message|>Lima?<|end|><|start|>assistant"
    assert answer(f"{thought}<|channel|>final<|message|>Bogot\u00e1<|return|>", marks=marks) == (
        "Bogot\u00e1"
    )
    assert answer(thought, marks=marks) == ""
    assert answer("Bogot\u00e1<|return|>", marks=marks) == "Bogot\u00e1"


def test_an_answer_ends_before_its_stop_string():
    assert answer("parcels\nUser: next", stops=("\nUser:", "END")) == "parcels"
    assert answer("parcelsEND\nUser:", stops=("\nUser:", "END")) == "parcels"
    assert answer("<think>END</think>parcelsEND", stops=("END",)) == "parcels"


@pytest.mark.parametrize(
    ("scorer", "completion", "gold", "expected"),
    [
        ("contains", "<think>Lima?</think>Bogot\u00e1", "Lima", 0),
        ("contains", "<think>Lima?</think>Bogot\u00e1", "Bogot\u00e1", 1),
        ("exact_label", "<think>no</think>\n\nYes", "yes", 1),
        ("exact_label", "<think>no</think>\n\nYes", "no", 0),
    ],
)
def test_a_thought_is_not_scored(scorer, completion, gold, expected):
    row = Demonstration("row", "t", ({"role": "user", "content": "?"},), "", gold)
    assert SCORERS[scorer](answer(completion), row) == expected
