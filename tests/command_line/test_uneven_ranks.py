"""Processes with unequal numbers of rows: whatever is a collective, all of them join."""

import json

import pytest
import torch
import yaml

from datamodules.loaders import EvaluationLoader, Share
from sdft.rollout.sampling import on_policy_rows
from sdft.stages import StagePlan
from tests.child_runs import run_ranks, write_config
from tests.command_line.test_strategies import losses, ranks_of
from tests.conftest import write_rows
from tests.sample_tasks import letter_rows

TIMEOUT_S = 240
BATCHES = [0, 1, 2, 3, 4]  # with three ranks: 0, 1, n - 1, n, n + 1


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("num_batches", BATCHES)
@pytest.mark.parametrize("more", [0, 1])
def test_every_rank_gives_as_many_evaluation_batches(num_ranks, batch_size, num_batches, more):
    rows = list(range(num_batches * num_ranks * batch_size + more))
    loaders = [
        EvaluationLoader(rows, Share(rank, num_ranks), batch_size, list)
        for rank in range(num_ranks)
    ]
    given = [list(loader) for loader in loaders]
    assert {len(batches) for batches in given} == {num_batches + more}
    assert {len(loader) for loader in loaders} == {num_batches + more}
    assert sorted(row for batches in given for batch in batches for row in batch) == rows


def fit(folder, config, strategy, *more):
    log = folder / f"{strategy}.log"
    run_dir = folder / strategy
    arguments = ["fit", f"--config={config}", *ranks_of(strategy, 2), f"--run_dir={run_dir}"]
    arguments += ["--checkpoint.keep_stages=false", "--export.enabled=false", *more]
    code = run_ranks(*arguments, log=log, num_ranks=2, timeout_s=TIMEOUT_S)
    assert code == 0, log.read_text()[-5000:]
    return run_dir


def changed(config, **data):
    content = yaml.safe_load(config.read_text())
    content["data"] |= data
    config.write_text(yaml.safe_dump(content))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_ranks_with_other_numbers_of_evaluation_batches_end_a_run_together(strategy, tmp_path):
    config = write_config(tmp_path, "SFTModule", num_train=2)
    changed(config, eval_batch_size=1)
    for name, num_validation, num_test in (("one", 1, 3), ("two", 3, 1)):
        for split, count in (("validation", num_validation), ("test", num_test)):
            write_rows(tmp_path / name / f"{split}.jsonl", letter_rows(name, split, count))
    run_dir = fit(tmp_path, config, strategy)
    record = json.loads((run_dir / "retention.json").read_text())
    assert len(record["rows"]) == 3
    answered = (run_dir / "answers" / "stage-2.jsonl").read_text().splitlines()
    assert len(answered) == 1 + 3


def num_draws(seed, rank):
    """How often a rank of two draws samples in a stage of nine rows, read twice, four at a time."""
    known, draws = set(), 0
    for places in StagePlan(("one",), (9,), (18,), 4, seed).batches(0):
        own, _ = Share(rank, 2).of_batch(places)
        draws += not known.issuperset(own)
        known.update(own)
    return draws


@pytest.mark.slow
@pytest.mark.parametrize("method", ["TeacherSFTModule", "OfflineDistillationModule"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_teacher_samples_are_drawn_where_not_all_ranks_have_new_rows(method, strategy, tmp_path):
    seed = next(seed for seed in range(100) if num_draws(seed, 0) != num_draws(seed, 1))
    config = write_config(tmp_path, method, num_train=9)
    changed(config, epochs_per_stage=2, batch_size=4)
    run_dir = fit(tmp_path, config, strategy, f"--seed_everything={seed}")
    assert all(torch.isfinite(torch.tensor(losses(run_dir))))
    assert len(losses(run_dir)) == 5 + 2


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_some_ranks_may_have_no_row_to_sample_for(strategy, tmp_path):
    rows = [on_policy_rows(0.25, range(rank, 4, 2)) for rank in range(2)]
    assert sorted(map(len, rows)) == [0, 1]
    config = write_config(tmp_path, on_policy_fraction=0.25)
    changed(config, batch_size=4)
    assert all(loss > 0 for loss in losses(fit(tmp_path, config, strategy)))
