from dataclasses import replace

import pytest

from sdft.stages import StagePlan


@pytest.fixture
def plan() -> StagePlan:
    return StagePlan(("a", "b"), (10, 7), num_examples=(20, 9), batch_size=4, seed=3)


def test_steps_round_up_so_that_the_last_partial_batch_is_trained(plan):
    assert [plan.steps_in_stage(stage) for stage in (0, 1)] == [5, 3]
    assert [plan.first_step(stage) for stage in (0, 1, 2)] == [0, 5, 8]
    assert [len(batch) for batch in plan.batches(1)] == [4, 4, 1]


def test_every_row_is_drawn_once_per_pass(plan):
    drawn = [row for batch in plan.batches(0) for _, row in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_batches_from_the_middle_equal_the_tail_of_all(plan):
    assert list(plan.batches(0, start=3)) == list(plan.batches(0))[3:]


def test_order_depends_on_seed_and_stage():
    def order(seed, stage):
        plan = StagePlan(("a", "b"), (50, 50), (50, 50), batch_size=50, seed=seed)
        return [row for _, row in next(plan.batches(stage))]

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, stage)) for seed in (1, 2) for stage in (0, 1)}) == 4


def test_replay_adds_earlier_rows_to_later_stages_at_the_asked_rate(plan):
    replaying = replace(plan, num_examples=(20, 18), replay_fraction=0.3)
    assert list(replaying.batches(0)) == list(plan.batches(0))
    batches = list(replaying.batches(1))
    own = [[place for place in batch if place[0] == 1] for batch in batches]
    assert own == list(replace(replaying, replay_fraction=0.0).batches(1))
    extra = [len(batch) - len(kept) for batch, kept in zip(batches, own, strict=True)]
    assert extra == [1, 1, 1, 1, 1]  # of 4, 8, 12, 16 and 18 rows 1.2, 2.4, 3.6, 4.8 and 5.4
    assert list(replaying.batches(1, start=2)) == batches[2:]


def test_replay_draws_every_earlier_row_before_any_comes_again():
    plan = StagePlan(("a", "b", "c"), (3, 2, 20), (3, 2, 20), 20, seed=1, replay_fraction=0.5)
    replayed = [place for place in next(plan.batches(2)) if place[0] != 2]
    assert len(replayed) == 10
    assert set(replayed[:5]) == set(replayed[5:]) == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)}
    assert replayed[:5] != replayed[5:]
    other = replace(plan, seed=2)
    assert [place for place in next(other.batches(2)) if place[0] != 2] != replayed


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.7, 1.0, 2.5])
def test_replay_keeps_its_fraction_over_a_whole_stage(fraction):
    plan = StagePlan(("a", "b"), (9, 30), (9, 30), batch_size=4, seed=0, replay_fraction=fraction)
    replayed = [place for batch in plan.batches(1) for place in batch if place[0] == 0]
    assert len(replayed) == round(30 * fraction)
