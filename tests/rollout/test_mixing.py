import pytest

from sdft.rollout.sampling import beside_demonstrations, on_policy_rows
from sdft.types import Rollout


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_share_of_on_policy_rows_is_exact_at_any_time(fraction, batch):
    sampled = 0
    for step in range(200):
        sampled += len(on_policy_rows(fraction, range(step * batch, (step + 1) * batch)))
        assert abs(sampled - fraction * (step + 1) * batch) < 1 + 1e-6
    assert sampled == pytest.approx(fraction * 200 * batch, abs=1)


def test_rows_are_the_same_however_many_ranks_share_a_batch():
    alone = on_policy_rows(0.6, range(16, 24))
    first, second = (on_policy_rows(0.6, range(16 + rank, 24, 2)) for rank in (0, 1))
    assert sorted([2 * row for row in first] + [2 * row + 1 for row in second]) == alone


def test_all_or_none():
    assert on_policy_rows(1.0, range(40, 45)) == [0, 1, 2, 3, 4]
    assert on_policy_rows(0.0, range(40, 45)) == []


def test_samples_stand_in_their_rows_and_demonstrations_in_the_others():
    sampled = Rollout([[1], [2, 3]], [[-0.5], [-0.1, -0.2]], [True, False])
    mixed = beside_demonstrations(sampled, [1, 3], [[9], [8], [7, 7], [6]])
    assert mixed.completions == [[9], [1], [7, 7], [2, 3]]
    assert mixed.logprobs == [[], [-0.5], [], [-0.1, -0.2]]
    assert mixed.ended == [True, True, True, False]
    assert mixed.num_tokens == 3
    assert beside_demonstrations(None, [], [[9], [8]]).completions == [[9], [8]]
