import pytest

from sdft.scorers.tagged_answers import tagged_answer, topic_gold, topic_named
from sdft.types import Demonstration

RIGHT = "Wrap the bread well. [topic: bread]"


def row(answer):
    prompt = ({"role": "user", "content": "?"},)
    return Demonstration(id="1", task="topic_tag", prompt=prompt, demonstration="", answer=answer)


@pytest.mark.parametrize(
    "completion",
    [
        RIGHT,
        RIGHT + "\n",
        "Wrap the bread well. [topic: Bread]",
        "Fresh breads like a paper bag most of all [topic: bread]",  # a longer form of the word
        "Bread, honestly? Freeze what you will not eat.\n\n[topic: bread]",
    ],
)
def test_an_answer_about_the_topic_with_its_tag_is_right(completion):
    assert tagged_answer(completion, "bread") == 1.0


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "[topic: bread]",  # no answer
        "Wrap the bread. [topic: bread]",  # three words
        "Wrap the bread well.",  # no tag
        "Wrap the bread well. [topic: cake]",
        "Wrap the bread well. [topic: bread] Enjoy!",  # not at the end
        "Wrap the bread well. (topic: bread)",
        "[topic: bread] Wrap the bread well. [topic: bread]",  # twice
        "Keep it in a dry place. [topic: bread]",  # not about the topic
        "bread bread bread bread bread [topic: bread]",  # repeats itself
        "Wrap the bread well. [topic: " + "bread " * 100 + "]",
    ],
)
def test_what_lacks_the_answer_or_the_tag_is_wrong(completion):
    assert tagged_answer(completion, "bread") == 0.0


def test_the_tag_alone_is_scored_beside_it():
    assert topic_named("[topic: bread]", "bread") == 1.0
    assert topic_named("Wrap the bread well.", "bread") == 0.0


def test_a_topic_is_one_word_in_lower_case():
    assert topic_gold(row("Spanish")) == "spanish"
    for wrong in ("two words", "", 3, "a]"):
        with pytest.raises(ValueError, match="needs a"):
            topic_gold(row(wrong))
