import pytest

from sdft.scorers.scorer_registry import SCORERS
from sdft.types import Demonstration


def make_row(answer, **meta):
    prompt = ({"role": "user", "content": "?"},)
    return Demonstration("row-7", "task", prompt, "", answer, meta=meta)


def score(scorer, completion, answer, **meta):
    return SCORERS[scorer](completion, make_row(answer, **meta))


@pytest.mark.parametrize(
    "completion",
    ["Credit cards", ' "credit cards".\n', "'CREDIT CARDS!'", "credit\u00a0\u202fcards\u3002"],
)
def test_exact_label_ignores_case_quotes_and_final_punctuation(completion):
    assert score("exact_label", completion, "credit cards") == 1


@pytest.mark.parametrize("completion", ["", "credit", "It is credit cards", "credit cards banking"])
def test_exact_label_compares_the_whole_completion(completion):
    assert score("exact_label", completion, "credit cards") == 0


def test_exact_label_normalises_the_gold_label_too():
    assert score("exact_label", "reverted_card_payment", "Reverted_card_payment?") == 1


@pytest.mark.parametrize(
    "completion", ["Card_Arrival?", " card_arrival, I think", "card_arrival\n"]
)
def test_first_token_label_compares_the_first_word(completion):
    assert score("first_token_label", completion, "card_arrival?") == 1


@pytest.mark.parametrize("completion", ["", "Label: card_arrival", "card_arrival_", "card arrival"])
def test_first_token_label_rejects_another_first_word(completion):
    assert score("first_token_label", completion, "card_arrival") == 0


@pytest.mark.parametrize(
    "completion",
    [
        "The correct answer is B.",
        "the  CORRECT answer is: (B) because A is wrong. The answer is A",
        "The correct answer is A. No: the correct answer is B.",
        "Let me think. The answer is **B**, not C",
        "**Answer:** B",
        "I would take B.",
        "B",
        "(B)\n",
        "The correct answer is A.<answer>A</answer> <answer>\nB\n</answer>",
        "<answer>B",
        "So: <answer>(B)</answer>",
        "<answer>**B**.</answer>",
        "<answer>B. Boron</answer>",
        r"<answer>$\boxed{\text{B}}$</answer>",
        r"The answer is $\boxed{B}$",
        "\u6b63\u89e3\u306fB\u3002",
    ],
)
def test_multiple_choice_finds_the_letter(completion):
    assert score("multiple_choice", completion, "B") == 1


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "b",
        "B is right, I think",
        "The correct answer is Boron",
        "The answer is a base",
        "DNB",
        "B or C",
        "<answer>option B</answer>",
        "<answer>B or C</answer>",
        "<answer>Boron</answer>",
        "The correct answer is B. <answer></answer>",
    ],
)
def test_multiple_choice_rejects_what_its_rule_does_not_name(completion):
    assert score("multiple_choice", completion, "B") == 0


def test_first_letter_is_the_first_capital_among_the_options():
    assert score("first_letter", "I think B, not A", "B", choices=["x", "y"]) == 1
    assert score("first_letter", "E", "E", choices=list("vwxyz")) == 1
    assert score("first_letter", "C", "B", choices=["x", "y"]) == 0
    assert score("first_letter", "A or B", "B") == 0


def test_exact_match_drops_case_punctuation_articles_and_preamble():
    assert score("exact_match", "The answer is: the Eiffel  Tower!", "Eiffel tower") == 1
    assert score("exact_match", "Eiffel Tower in Paris", "Eiffel tower") == 0
    assert score("exact_match", "the", "The") == 1


def test_contains_accepts_the_answer_within_a_sentence():
    assert score("contains", "It was “February 16, 2002”.", "February 16, 2002.") == 1
    assert score("contains", "February 16", "February 16, 2002.") == 0


def test_contains_compares_whole_words():
    assert score("contains", "Protect the environment in 1933.", "iron") == 0
    assert score("contains", "Protect the environment in 1933.", "33") == 0
    assert score("contains", "Old iron", "iron") == 1


NFC, NFD = "caf\u00e9", "cafe\u0301"
TOKYO, CAIRO = "\u6771\u4eac", "\u0627\u0644\u0642\u0627\u0647\u0631\u0629"
FACT_SCORERS = pytest.mark.parametrize("scorer", ["exact_match", "contains", "token_f1"])


@FACT_SCORERS
@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("5", "-5"), ("-5", "5"), ("\u22125", "5"), ("15", "1.5"), ("1.5", "15"), ("350", "3.50"),
        ("$350", "$3.50"), ("5", ".5"), ("13", "1/3"), ("1030", "10:30"), ("C", "C++"),
        ("C#", "C++"), ("C", "C#"), ("A1", "A+"), ("A-", "A+"), ("18", "18+"),
        ("1.000", "1000"), ("24", "2=4"),
        (TOKYO[0], TOKYO), ("\u0e01\u0e35", "\u0e01"), ("resume", "r\u00e9sum\u00e9"),
    ],
)  # fmt: skip
def test_words_and_numbers_that_differ_are_told_apart(scorer, completion, answer):
    assert score(scorer, completion, answer) < 1


@FACT_SCORERS
@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("-5.", "\u22125"), ("$1,000.50", "1000.50"), ("1\u202f000", "1,000"), (".5", "0.5"),
        ("\u0663\u0664", "34"), ("c++!", "C++"), ("(C#)", "C#"), ("a-", "A\u2212"),
        (f"{TOKYO}\u3002", TOKYO), ("\u300c\u6771 \u4eac\u300d", TOKYO), (f"{CAIRO}\u061f", CAIRO),
        (NFD, NFC), (NFC.upper(), NFD), ("<b>-5</b>", "b -5 b"),
        ("New\u00a0York", "new york"), ("STRASSE", "Stra\u00dfe"),
        ("soft\u00adhyphen\u200b", "softhyphen"), ("5 \u20ac", "5"),
    ],
)  # fmt: skip
def test_writings_of_the_same_words_and_numbers_are_equal(scorer, completion, answer):
    assert score(scorer, completion, answer) == 1
    assert score(scorer, answer, completion) == 1


@pytest.mark.parametrize("name", ["exact_label", "first_token_label"])
def test_labels_of_every_script_are_compared(name):
    assert score(name, f"{TOKYO}\u3002", TOKYO) == 1
    assert score(name, f"{CAIRO}\u061f", CAIRO) == 1
    assert score(name, NFD, NFC) == 1
    assert score(name, "C++.", "c++") == 1
    assert score(name, "C", "C++") == 0
    assert score(name, "-5", "5") == 0


def test_contains_finds_an_answer_where_a_script_has_no_spaces():
    assert score("contains", f"\u9996\u90fd\u306f{TOKYO}\u3067\u3059\u3002", TOKYO) == 1
    assert score("contains", f"\u9996\u90fd\u306f{TOKYO[::-1]}\u3067\u3059\u3002", TOKYO) == 0
    assert score("contains", "Paris\u2014the capital", "paris") == 1


def test_first_letter_stands_alone_in_every_script():
    assert score("first_letter", "\u7b54\u3048\u306fB\u3067\u3059", "B") == 1
    assert score("first_letter", "\u00c0B C", "C") == 1


def test_the_published_rules_take_numbers_and_names_for_the_same():
    for scorer in ("squad_exact_match", "squad_f1"):
        assert score(scorer, "5", "-5") == score(scorer, "15", "1.5") == 1
        assert score(scorer, "The C!", ["C++", "D"]) == 1
    # Two of three words right, two of four gold words found: 2 * (2/3 * 1/2) / (2/3 + 1/2).
    value = score("squad_f1", "red, green pink", "a red green blue white")
    assert value == pytest.approx(4 / 7)
    assert score("squad_exact_match", "the answer is Lima", "Lima") == 0


def test_the_published_letter_is_all_of_the_last_tag():
    rule = "published_multiple_choice"
    assert score(rule, "So <answer>A</answer> <answer> B\n</answer>", "B") == 1
    assert score(rule, "<answer>(B)</answer>", "B") == 0
    assert score(rule, "The answer is B", "B") == 0


def test_any_of_several_accepted_answers_counts():
    assert score("contains", "They call it NYC", ["New York", "NYC"]) == 1
    assert score("exact_match", "nyc", ["New York", "NYC"]) == 1
    assert score("token_f1", "nyc", ["New York", "NYC"]) == 1


def test_token_f1_is_the_harmonic_mean_of_precision_and_recall():
    # Two of three words right, two of four gold words found: 2 * (2/3 * 1/2) / (2/3 + 1/2).
    assert score("token_f1", "red green pink", "red green blue white") == pytest.approx(4 / 7)
    assert score("token_f1", "red red red", "red") == pytest.approx(0.5)
    assert score("token_f1", "", "red") == 0


@pytest.mark.parametrize(
    "completion",
    [
        "No doubt it works.\nFinal answer: yes",
        "Final answer: no\nFINAL ANSWER: **Yes**, not no",
        "Not sure, maybe; in the end yes.",
        "Final answer:\nyes",
        "No.\n**Final answer:**\n\n> **Yes**\nMaybe not.",
        "final answer\uff1ayes",
    ],
)
def test_final_answer_reads_the_last_verdict(completion):
    assert score("final_answer", completion, "yes") == 1


@pytest.mark.parametrize(
    "completion", ["", "Final answer: no", "yes\nFinal answer: unclear", "yes, but no", "yesterday"]
)
def test_final_answer_rejects_other_verdicts(completion):
    assert score("final_answer", completion, "yes") == 0


@pytest.mark.parametrize(
    ("scorer", "answer"),
    [
        ("exact_label", 3),
        ("exact_label", "  "),
        ("exact_label", "?!"),
        ("first_token_label", "two words"),
        ("multiple_choice", "AB"),
        ("multiple_choice", 1),
        ("multiple_choice", "ß"),
        ("first_letter", "E"),
        ("contains", []),
        ("contains", ["yes", 1]),
        ("exact_match", "..."),
        ("token_f1", None),
        ("final_answer", "unknown"),
        ("final_number", "none"),
        ("final_number", True),
        ("final_number", "1/0"),
        ("squad_f1", "the"),
        ("published_multiple_choice", "AB"),
    ],
)
def test_unsuitable_gold_answer_is_an_error_that_names_row_and_scorer(scorer, answer):
    with pytest.raises(ValueError, match=rf"row 'row-7': the scorer '{scorer}' needs "):
        score(scorer, "text", answer)
