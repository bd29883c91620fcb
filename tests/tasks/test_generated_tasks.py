"""What holds for every generated task."""

import functools
import subprocess
import sys
from itertools import combinations

import pytest

from sdft.tasks.generated import GENERATORS, SPLITS, generate

# English runs at about four characters or 0.75 words per token; these bounds leave room below
# 50 tokens for a prompt and 16 for a demonstration
# of one label, call or fact.
MAX_PROMPT_CHARACTERS = 200
MAX_PROMPT_WORDS = 36
MAX_DEMONSTRATION_CHARACTERS = {"topic_tag": 110}  # a sentence and a tag
MAX_CONTEXT_WORDS = 34

names = pytest.mark.parametrize("name", GENERATORS)
splits = pytest.mark.parametrize("split", SPLITS)


@functools.cache
def all_rows(name, split, seed=0):
    """Every row there is: the number stands in the refusal of a larger one."""
    with pytest.raises(ValueError, match="ask for at most") as refusal:
        generate(name, split, 10**9, seed)
    return generate(name, split, int(str(refusal.value).split()[-1]), seed)


def texts(rows):
    return [row.prompt[0]["content"] for row in rows]


@names
@splits
def test_a_task_has_rows_to_train_and_to_evaluate(name, split):
    assert len(all_rows(name, split)) >= (2000 if split == "train" else 500)


@names
def test_the_same_seed_gives_the_same_rows_and_another_seed_others(name):
    assert generate(name, "train", 64, seed=3) == generate(name, "train", 64, seed=3)
    assert texts(generate(name, "train", 64, seed=3)) != texts(generate(name, "train", 64, seed=4))


def test_rows_are_the_same_in_another_process_with_another_hash_seed():
    program = (
        "from sdft.tasks.generated import *\n"
        "for name in GENERATORS: print(generate(name, 'test', 24, seed=5))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.splitlines() == [repr(generate(name, "test", 24, seed=5)) for name in GENERATORS]


@names
@splits
def test_fewer_rows_are_the_first_of_more(name, split):
    more = generate(name, split, 100)
    for fewer in (1, 13, 50):
        assert generate(name, split, fewer) == more[:fewer]


@names
def test_no_prompt_occurs_twice_within_or_across_splits(name):
    prompts = {split: texts(all_rows(name, split)) for split in SPLITS}
    for split in SPLITS:
        assert len(set(prompts[split])) == len(prompts[split])
    for one, other in combinations(SPLITS, 2):
        assert not set(prompts[one]) & set(prompts[other])


@names
def test_splits_stay_disjoint_across_seeds(name):
    train = {text for seed in (0, 1) for text in texts(generate(name, "train", 2000, seed))}
    held_out = {
        text
        for split in ("validation", "test")
        for seed in (2, 3)
        for text in texts(generate(name, split, 500, seed))
    }
    assert not train & held_out


@names
@splits
def test_identifiers_are_unique_and_name_the_split(name, split):
    rows = generate(name, split, 200)
    assert [row.id for row in rows] == [f"{name}-{split}-{number}" for number in range(200)]


@names
@splits
def test_a_row_is_one_user_message_with_a_bare_answer_and_its_origin(name, split):
    for row in generate(name, split, 200, seed=2):
        assert row.task == name
        assert [message["role"] for message in row.prompt] == ["user"]
        assert row.demonstration == row.answer or name == "topic_tag"
        assert (row.context is not None) == (name == "new_facts")
        assert (row.meta["generator"], row.meta["split"], row.meta["seed"]) == (name, split, 2)


@names
@splits
def test_prompts_contexts_and_demonstrations_are_short_and_filled_in(name, split):
    for row in all_rows(name, split):
        prompt = row.prompt[0]["content"]
        assert len(prompt) <= MAX_PROMPT_CHARACTERS
        assert len(prompt.split()) <= MAX_PROMPT_WORDS
        assert 0 < len(row.demonstration) <= MAX_DEMONSTRATION_CHARACTERS.get(name, 50)
        assert len((row.context or "").split()) <= MAX_CONTEXT_WORDS
        assert not set("{}") & set(prompt + row.demonstration + (row.context or ""))
        assert prompt == prompt.strip()


@names
def test_wording_is_varied_from_the_first_rows_on(name):
    rows = generate(name, "train", 200)
    assert len({row.meta["template"] for row in rows}) >= 48
    assert len({row.meta["instruction"] for row in rows}) >= 6


@names
def test_an_unknown_split_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match="'dev'; use one of train, validation, test"):
        generate(name, "dev", 8)


@names
@pytest.mark.parametrize("num_rows", [0, -1])
def test_fewer_than_one_row_is_refused(name, num_rows):
    with pytest.raises(ValueError, match=f"at least 1, not {num_rows}"):
        generate(name, "train", num_rows)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="'poems'; use one of routing, tool_call, new_facts, topic_tag"
    ):
        generate("poems", "train", 8)


@names
def test_asking_for_one_row_too_many_states_how_many_there_are(name):
    num_rows = len(all_rows(name, "test"))
    with pytest.raises(ValueError, match=rf"{name}/test: {num_rows + 1} .* at most {num_rows}$"):
        generate(name, "test", num_rows + 1)
