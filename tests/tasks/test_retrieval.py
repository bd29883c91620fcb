import math

import pytest
import torch

from sdft.tasks.retrieval import choose_examples, tfidf_vectors
from sdft.types import Demonstration

QUESTIONS = (
    "Book a table for two",
    "Book a  TABLE for two",  # the first again
    "Book a table for three",
    "Play some jazz",
    "Play some jazz for two",
    "Will it rain?",
)


def rows(questions=QUESTIONS):
    return [
        Demonstration(str(index), "t", ({"role": "user", "content": text},), "done", "done")
        for index, text in enumerate(questions)
    ]


def ids(examples):
    return {row: [example.id for example in shown] for row, shown in examples.items()}


def test_vectors_give_the_cosine_of_hand_worked_weights():
    texts = ["sun sun rain", "sun wind", "rain rain wind snow"]
    idf = {"sun": math.log(1.5), "rain": math.log(1.5), "wind": math.log(1.5), "snow": math.log(3)}
    words = list(idf)
    expected = torch.tensor(
        [[text.split().count(word) * idf[word] for word in words] for text in texts],
        dtype=torch.float64,
    )
    expected = expected / expected.norm(dim=1, keepdim=True)
    vectors = tfidf_vectors(texts).to_dense()
    torch.testing.assert_close(vectors @ vectors.T, expected @ expected.T)


def test_words_of_every_text_weigh_nothing_and_texts_without_others_are_zero():
    vectors = tfidf_vectors(["which team", "which team sun", "which team rain"]).to_dense()
    assert (vectors[0] == 0).all()
    assert (vectors @ vectors.T)[1, 2] == 0


def test_retrieved_examples_are_the_nearest_and_the_nearest_comes_last():
    chosen = ids(choose_examples(rows(), 2, "retrieved", seed=0))
    assert chosen["2"][-1] == "0"
    assert chosen["3"] == ["0", "4"]  # nothing else is near: the first of the rest
    assert chosen["4"][-1] == "3"


@pytest.mark.parametrize("choice", ["random", "retrieved"])
@pytest.mark.parametrize("number", [1, 4])
def test_no_example_has_the_rows_own_question_or_anothers(choice, number):
    for row, shown in ids(choose_examples(rows(), number, choice, seed=3)).items():
        questions = [" ".join(QUESTIONS[int(each)].casefold().split()) for each in (row, *shown)]
        assert len(set(questions)) == number + 1


def test_random_examples_depend_on_seed_and_row_alone():
    some = rows([f"question {index}" for index in range(40)])
    first = ids(choose_examples(some, 2, "random", seed=1))
    assert ids(choose_examples(some, 2, "random", seed=1)) == first
    assert ids(choose_examples(some, 2, "random", seed=2)) != first
    assert len({tuple(shown) for shown in first.values()}) > 30


def test_too_few_other_questions_are_an_error():
    with pytest.raises(ValueError, match=r"task 't': has 4 .*it can be at most 5"):
        choose_examples(rows(), 5, "random", seed=0)


def test_more_rows_than_a_block_are_compared_with_all(monkeypatch):
    some = rows([f"{index % 7} {index % 11} {index % 13}" for index in range(60)])
    whole = ids(choose_examples(some, 3, "retrieved", seed=0))
    monkeypatch.setattr("sdft.tasks.retrieval._BLOCK", 7)
    assert ids(choose_examples(some, 3, "retrieved", seed=0)) == whole
