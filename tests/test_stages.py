import pytest

from sdft.stages import StagePlan, mix_seed


@pytest.fixture
def plan() -> StagePlan:
    return StagePlan(("a", "b"), (10, 7), num_examples=(20, 9), batch_size=4, seed=3)


def test_steps_round_up_so_that_the_last_partial_batch_is_trained(plan):
    assert [plan.steps_in_stage(stage) for stage in (0, 1)] == [5, 3]
    assert [plan.first_step(stage) for stage in (0, 1, 2)] == [0, 5, 8]
    assert [len(batch) for batch in plan.batches(1)] == [4, 4, 1]


def test_every_row_is_drawn_once_per_pass(plan):
    drawn = [index for batch in plan.batches(0) for index in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_batches_from_the_middle_equal_the_tail_of_all(plan):
    assert list(plan.batches(0, start=3)) == list(plan.batches(0))[3:]


def test_order_depends_on_seed_and_stage():
    def order(seed, stage):
        plan = StagePlan(("a", "b"), (50, 50), (50, 50), batch_size=50, seed=seed)
        return next(plan.batches(stage))

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, stage)) for seed in (1, 2) for stage in (0, 1)}) == 4


def test_mixed_seeds_do_not_collide_over_counters():
    seeds = {
        mix_seed(seed, step, rank) for seed in range(5) for step in range(200) for rank in (0, 1)
    }
    assert len(seeds) == 5 * 200 * 2
    assert all(0 <= seed < 2**63 for seed in seeds)
