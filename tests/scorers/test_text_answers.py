import pytest

from sdft.scorers.scorer_registry import SCORERS
from sdft.types import Demonstration


def make_row(answer, **meta):
    prompt = ({"role": "user", "content": "?"},)
    return Demonstration("row-7", "task", prompt, "", answer, meta=meta)


def score(scorer, completion, answer, **meta):
    return SCORERS[scorer](completion, make_row(answer, **meta))


@pytest.mark.parametrize(
    "completion", ["Credit cards", ' "credit cards".\n', "'CREDIT CARDS!'", "credit cards"]
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
    ],
)
def test_unsuitable_gold_answer_is_an_error_that_names_row_and_scorer(scorer, answer):
    with pytest.raises(ValueError, match=rf"row 'row-7': the scorer '{scorer}' needs "):
        score(scorer, "text", answer)
