from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_modules import OfflineDistillationModule, TeacherSFTModule
from sdft.model.pretrained import load_model
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest
from sdft.seeds import Stream, mix_seed
from tests.lightning_modules.one_step import (
    BATCH,
    assert_step_equals,
    logprobs,
    moved,
    token_logprobs,
)
from tests.lightning_modules.test_modules import Recorder, sdft, train

METHODS = [TeacherSFTModule, OfflineDistillationModule]
SAMPLES = [[90, 12], [33, 13, 88, 0], [7, 21, 0]]


def sampled_step(kind, **options):
    """A method that has drawn samples, and its rows: prompt, shown prompt, sample."""
    module = moved(kind, **options)
    rows = tuple(Row(str(index)) for index in range(len(SAMPLES)))
    module.teacher_samples = {
        (row.task, row.id): tokens for row, tokens in zip(rows, SAMPLES, strict=True)
    }
    batch = replace(BATCH, rows=rows)
    return module, batch, zip(batch.student_prompts, batch.teacher_prompts, SAMPLES, strict=True)


class Row:
    task = "one"

    def __init__(self, identifier):
        self.id = identifier


class SaveAt(Callback):
    """Saves a checkpoint when a step has been taken."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_sft_on_teacher_samples_is_cross_entropy_on_the_samples():
    module, batch, rows = sampled_step(TeacherSFTModule)
    own = [token_logprobs(module.student, prompt, tokens) for prompt, _, tokens in rows]
    assert_step_equals(module, -torch.cat(own).mean(), batch)


def test_offline_distillation_is_the_kl_from_the_shown_teacher_on_the_samples():
    module, batch, rows = sampled_step(OfflineDistillationModule)
    means = []
    for prompt, shown, tokens in rows:
        student = logprobs(module.student, prompt, tokens)
        teacher = logprobs(module.teacher.model, shown, tokens).detach()
        means.append((teacher.exp() * (teacher - student)).sum(-1).mean())
    assert_step_equals(module, torch.stack(means).mean(), batch)


@pytest.mark.parametrize("kind", METHODS)
def test_samples_are_the_shown_models_and_stay_the_same_for_a_stage(kind, tmp_path):
    batches = []

    class Watched(kind):
        def samples_of(self, batch):
            batches.append((self.stage, batch, super().samples_of(batch)))
            return batches[-1][-1]

    module = sdft(Watched, seed=3)
    train(module, tmp_path, epochs_per_stage=2)
    assert len(batches) == 10
    base = load_model("tiny-random")
    first_pass = [(batch, samples) for stage, batch, samples in batches if stage == 0][:3]
    for batch, samples in first_pass:
        seeds = [mix_seed(Stream.TEACHER_SAMPLES, 3, 0, "one", row.id) for row in batch.rows]
        request = RolloutRequest(
            batch.teacher_prompts, module.sampling, end_ids=base.end_ids, seeds=seeds
        )
        assert samples == sample(base.model, request).completions
    seen = {}
    for _, batch, samples in batches:
        for row, tokens in zip(batch.rows, samples, strict=True):
            assert seen.setdefault(row.id, tokens) == tokens
    assert len(seen) == 10


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_resumed_stage_learns_from_the_same_samples(kind, step, tmp_path):
    module = sdft(kind, seed=1)
    train(module, tmp_path / "whole", SaveAt(step, tmp_path / "at.ckpt"), num_train=(6, 6))
    resumed = sdft(kind, seed=1)
    train(resumed, tmp_path / "rest", num_train=(6, 6), ckpt_path=tmp_path / "at.ckpt")
    assert resumed.teacher_samples == module.teacher_samples
    for own, expected in zip(resumed.parameters(), module.parameters(), strict=True):
        assert torch.equal(own, expected)


def test_replayed_rows_have_samples_too(tmp_path):
    drawn = Recorder("on_train_end", lambda trainer, module: set(module.teacher_samples))
    train(sdft(TeacherSFTModule), tmp_path, drawn, replay_fraction=1.0)
    assert {task for task, _ in drawn.seen[0]} == {"one"}
    assert {task for task, _ in drawn.seen[1]} == {"one", "two"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"divergence": "rao_blackwellised"}, "model.divergence is rao_blackwellised"),
        ({"divergence": "sampled_token"}, "model.divergence is sampled_token"),
        ({"importance_clip": 2.0}, "model.importance_clip is 2.0; it must be null"),
    ],
)
def test_what_needs_the_students_own_draws_is_refused_offline(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        sdft(OfflineDistillationModule, **options)
