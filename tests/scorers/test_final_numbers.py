from fractions import Fraction

import pytest

from sdft.scorers.final_numbers import stated_number
from sdft.scorers.scorer_registry import SCORERS
from sdft.types import Demonstration

CHAIN = "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72.\n#### 72"


def score(completion, answer):
    prompt = ({"role": "user", "content": "?"},)
    return SCORERS["final_number"](completion, Demonstration("row-7", "task", prompt, "", answer))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (CHAIN, 72),
        ("The answer is $3.50.", 3.5),
        ("We get 10-5", 5),
        ("It is 10 - -5", -5),
        ("\u22125", -5),
        ("-$5", -5),
        ("- 5 apples", 5),
        ("#### 1,234,567.5", 1234567.5),
        ("1\u202f000 people", 1000),
        ("$1{,}000$", 1000),
        (".5", 0.5),
        ("1e3", 1000),
        ("2.5 million", 2500000),
        ("3/4", 0.75),
        ("1 1/2 cups", 1.5),
        ("2\u00bd cups", 2.5),
        (r"$\boxed{\frac{3}{4}}$", 0.75),
        ("5 m^2", 5),
        ("5km", 5),
        ("\uff17\uff12", 72),
        ("\u0663\u066b\u0665", 3.5),
        ("Answer: 3 + 4 = 7", 7),
        ("**Answer:** 72 apples for 3 people.", 72),
        ("The answer is 72 (that is 36*2)", 72),
        ("The answer is:\n\n  72\nor about 70", 72),
        ("<answer>(18)</answer> I took 5 minutes", 18),
        ("The answer is 5. No: the answer is 6.", 6),
        ("The answer is unknown, I count 4 of 9", 4),
        ("#### 72\n\nI hope the answer is correct.", 72),
        ("First 3, then 4, so 5 in all.", 5),
    ],
)
def test_the_number_that_a_text_ends_in_is_read(text, value):
    found = stated_number(text)
    assert found is not None
    assert found.value == Fraction(value)
    assert not found.is_percentage
    assert score(text, value) == 1
    assert score(text, str(value)) == 1
    assert score(text, value + 1) == 0


@pytest.mark.parametrize(
    "text", ["", "none", "12/25/2020", "at 10:30", "3,5", "version 1.2.3", "2^10", "x2", "1/0",
             "9" * 5000, "1e9999", "B", "#### ?"]
)  # fmt: skip
def test_a_text_without_a_number_scores_zero(text):
    assert stated_number(text) is None
    assert score(text, 2) == 0


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("50%", "50", 1), ("50", "50%", 1), ("50 percent", 0.5, 1), ("0.5", "50%", 1),
        (r"50\%", "50 %", 1), ("0.5%", "50%", 0), ("0.5", "50", 0), ("0.5%", "50", 0),
        ("50%", "5000", 0),
    ],
)  # fmt: skip
def test_a_percentage_is_its_number_and_its_value(completion, answer, expected):
    assert score(completion, answer) == expected


def test_a_chain_that_passes_through_the_gold_number_is_wrong():
    wrong = CHAIN.replace("#### 72", "#### 24")
    assert SCORERS["contains"](wrong, Demonstration("r", "t", (), "", "72")) == 1
    assert score(wrong, CHAIN) == 0
    assert score(CHAIN, CHAIN) == 1


def test_values_are_exact():
    assert score("0.30000000000000004", 0.3) == 0
    assert score("0.333", "1/3") == 0
    assert score("2/6", "1/3") == 1
    assert score("3.50", 3.5) == 1
