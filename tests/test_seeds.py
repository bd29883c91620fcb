import random
from collections import Counter
from itertools import product

import numpy as np
import torch

from sdft.seeds import Stream, mix_seed, seeded

NAMES = ("a", "b", "one/1", "one", "1")


def seeds_of(stream):
    """Seeds of a stream over runs, stages, steps, places and names, as training draws them."""
    for seed, first in product(range(4), range(60)):
        yield mix_seed(stream, seed, first)
        yield from (mix_seed(stream, seed, first, second) for second in range(40))
        yield from (mix_seed(stream, seed, first, *names) for names in product(NAMES, NAMES))


def test_no_two_streams_or_counters_have_an_equal_seed():
    counts = Counter(seed for stream in Stream for seed in seeds_of(stream))
    assert len(counts) == counts.total() == len(Stream) * 4 * 60 * (1 + 40 + 25)
    assert all(0 <= seed < 2**63 for seed in counts)


def test_streams_of_the_same_counters_draw_unrelated_numbers():
    drawn = torch.stack(
        [
            torch.rand(2000, generator=torch.Generator().manual_seed(mix_seed(stream, 1, 0)))
            for stream in Stream
        ]
    )
    between = torch.corrcoef(drawn) - torch.eye(len(drawn))
    assert between.abs().max() < 0.1


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


def set_all(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def test_a_seeded_block_repeats_itself_and_leaves_no_trace():
    set_all(1)
    expected = draws()
    set_all(1)
    with seeded(5):
        inside = draws()
    assert draws() == expected != inside
    with seeded(5):
        assert draws() == inside
