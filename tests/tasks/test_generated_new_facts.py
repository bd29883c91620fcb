from itertools import combinations

import pytest

from sdft.tasks.generated import SPLITS, generate
from sdft.tasks.generated.new_facts import NUM_ENTITIES, QUESTIONS, TOWNS, generate_new_facts

NUM_FACTS = NUM_ENTITIES * len(QUESTIONS)


def fact(row):
    return row.meta["entity"], row.meta["attribute"], row.answer


@pytest.mark.parametrize("split", SPLITS)
def test_every_block_of_rows_asks_each_fact_once(split):
    rows = generate("new_facts", split, 10 * NUM_FACTS, seed=1)
    for start in range(0, len(rows), NUM_FACTS):
        assert len({fact(row) for row in rows[start : start + NUM_FACTS]}) == NUM_FACTS == 24


def test_all_splits_and_seeds_ask_the_same_facts():
    facts = [
        {fact(row) for row in generate("new_facts", split, NUM_FACTS, seed)}
        for split in SPLITS
        for seed in (0, 1)
    ]
    assert all(each == facts[0] for each in facts)


@pytest.mark.parametrize("attribute", QUESTIONS)
def test_no_wording_is_in_two_splits(attribute):
    wordings = QUESTIONS[attribute]
    for one, other in combinations(SPLITS, 2):
        assert not set(wordings[one]) & set(wordings[other])


@pytest.mark.parametrize("attribute", QUESTIONS)
@pytest.mark.parametrize(("split", "at_least"), [("train", 16), ("validation", 6), ("test", 6)])
def test_each_attribute_is_asked_in_many_wordings(attribute, split, at_least):
    wordings = QUESTIONS[attribute][split]
    assert len(set(wordings)) == len(wordings) >= at_least


def test_a_fact_is_asked_in_every_wording_before_one_comes_back():
    rows = generate("new_facts", "train", 16 * NUM_FACTS)
    first = [row for row in rows if fact(row) == fact(rows[0])]
    assert len({row.meta["template"] for row in first}) == 16


@pytest.mark.parametrize("split", SPLITS)
def test_the_article_holds_the_answer_and_the_question_does_not(split):
    for row in generate("new_facts", split, 500):
        assert row.answer in row.context
        assert row.meta["entity"] in row.context
        assert row.meta["entity"] in row.prompt[0]["content"]
        assert row.answer not in row.prompt[0]["content"].split()


def test_a_value_belongs_to_one_town():
    for column in zip(*TOWNS, strict=True):
        assert len(set(column)) == len(TOWNS)


def test_the_number_of_entities_sets_the_number_of_facts():
    rows = generate_new_facts("train", 100, num_entities=2)
    assert len({fact(row) for row in rows}) == 6
    assert generate("new_facts", "train", 100, num_entities=2) == rows


@pytest.mark.parametrize("num_entities", [0, -3, len(TOWNS) + 1])
def test_an_impossible_number_of_entities_is_refused(num_entities):
    with pytest.raises(ValueError, match=f"from 1 to {len(TOWNS)}, not {num_entities}"):
        generate("new_facts", "train", 8, num_entities=num_entities)
