import json
import math

import pytest
import torch

from datamodules import ContinualDataModule
from lightning_modules import SFTModule
from sdft.loss.probes import agreement
from tests.lightning_modules.one_step import TARGETS, TEACHER_PROMPTS, token_logprobs
from tests.lightning_modules.test_modules import Recorder, sdft, train
from tests.lightning_modules.test_teacher_samples import SaveAt
from tests.sample_tasks import write_task


def test_agreement_is_the_geometric_mean_probability_of_the_demonstration(tiny):
    pairs = zip(TEACHER_PROMPTS, TARGETS, strict=True)
    expected = [token_logprobs(tiny.model, *pair).mean().exp().item() for pair in pairs]
    assert agreement(tiny.model, TEACHER_PROMPTS, TARGETS) == pytest.approx(expected, rel=1e-5)


def median_agreement(folder, module):
    """A threshold between the rows of the first task, in the middle."""
    spec = write_task(folder, "one", num_train=6)
    data = ContinualDataModule([spec], module.tokenizer, teacher_template="dialogue")
    batch = data.reader.train_batch(data.tasks[0].train)
    found = sorted(agreement(module.student, batch.teacher_prompts, batch.demonstrations))
    return math.sqrt(found[2] * found[3])


def test_rows_below_the_threshold_are_neither_trained_nor_counted_and_are_listed(tmp_path):
    module = sdft(SFTModule)
    threshold = median_agreement(tmp_path, module)
    batches = Recorder("on_train_end", lambda trainer, module: trainer.datamodule.plan.num_rows)
    rows = []

    class Watched(SFTModule):
        def training_step(self, batch, batch_idx):
            rows.extend(row.id for row in batch.rows)
            return super().training_step(batch, batch_idx)

    trainer = train(sdft(Watched), tmp_path, batches, min_agreement=threshold)
    report = json.loads((tmp_path / "dropped.json").read_text())
    dropped = {row["id"] for task in report.values() for row in task["dropped"]}
    assert len(report["one"]["dropped"]) == 3
    assert report["one"]["num_rows"] == 6
    assert all(row["agreement"] < threshold for row in report["one"]["dropped"])
    assert not dropped & set(rows)
    assert batches.seen[0][0] == 3
    assert trainer.global_step == sum(-(-count // 2) for count in batches.seen[0])


def test_a_resumed_run_keeps_to_the_rows_that_were_dropped(tmp_path):
    threshold = median_agreement(tmp_path, sdft(SFTModule))
    saved = tmp_path / "at.ckpt"
    whole = sdft(SFTModule)
    train(whole, tmp_path, SaveAt(1, saved), min_agreement=threshold)
    resumed = sdft(SFTModule)
    train(resumed, tmp_path, ckpt_path=saved, min_agreement=threshold)
    for own, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_a_task_without_any_agreement_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"task 'one': the teacher agrees with no demonstration"):
        train(sdft(SFTModule), tmp_path, min_agreement=0.99)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_a_threshold_out_of_range_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match=rf"data.min_agreement is {value}; it must be in"):
        train(sdft(SFTModule), tmp_path, min_agreement=value)
