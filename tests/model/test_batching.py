import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdft.model.batching import length_groups


def cost(lengths, groups, price):
    return sum(len(group) * max(lengths[row] for row in group) + price for group in groups)


@given(st.lists(st.integers(1, 300), max_size=12), st.integers(0, 200))
def test_every_sequence_is_in_one_group_and_groups_never_cost_more_than_one(lengths, price):
    groups = length_groups(lengths, price)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    if lengths:
        assert cost(lengths, groups, price) <= cost(lengths, [range(len(lengths))], price)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=7), st.integers(0, 40))
def test_no_split_of_the_sorted_sequences_is_cheaper(lengths, price):
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    splits = itertools.product([False, True], repeat=len(lengths) - 1)
    cheapest = min(
        cost(lengths, split_after(order, [i + 1 for i, cut in enumerate(cuts) if cut]), price)
        for cuts in splits
    )
    assert cost(lengths, length_groups(lengths, price), price) == cheapest


def split_after(order, ends):
    return [order[start:end] for start, end in itertools.pairwise([0, *ends, len(order)])]


@pytest.mark.parametrize(
    ("lengths", "price", "expected"),
    [([], 5, []), ([7, 7, 7], 5, [[0, 1, 2]]), ([100, 3, 4], 10, [[1, 2], [0]])],
)
def test_groups_by_hand(lengths, price, expected):
    assert length_groups(lengths, price) == expected
