"""What goes wrong while a run is under way: numbers, memory, odd batches."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch

from callbacks import SkippedSteps
from lightning_modules import SDFTModule
from sdft.runs.failures import explained
from sdft.types import Rollout
from tests.lightning_modules.test_modules import Recorder, sdft, train

TOO_MANY = 2**61  # bytes


class Poisoned(SDFTModule):
    """Makes the loss, or the gradient alone, NaN or infinite at some steps."""

    poison: Mapping = MappingProxyType({})  # global step -> (where, value)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        where, value = self.poison.get(self.trainer.global_step, (None, 1.0))
        return loss * value if where == "loss" else loss

    def on_after_backward(self):
        super().on_after_backward()
        where, value = self.poison.get(self.trainer.global_step, (None, 0.0))
        if where == "gradient":
            self.student.model.norm.weight.grad[0] = value


def weights(trainer, module):
    """Everything an optimizer step moves."""
    moments = [
        each.clone()
        for state in module.optimizers(use_pl_optimizer=False).state.values()
        for each in state.values()
    ]
    return [each.detach().clone() for each in module.parameters()] + moments


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_moves_nothing_and_the_run_goes_on(where, value, tmp_path):
    module = sdft(Poisoned, weight_decay=0.1)
    module.poison = {1: (where, value)}
    before, after = (
        Recorder("on_train_batch_start", weights),
        Recorder("on_train_batch_end", weights),
    )
    skipped = SkippedSteps()
    trainer = train(module, tmp_path, before, after, skipped)
    assert trainer.global_step == 5
    assert skipped.num_skipped == 1
    moved = [
        len(old) != len(new) or not all(map(torch.equal, old, new))
        for old, new in zip(before.seen, after.seen, strict=True)
    ]
    assert moved == [True, False, True, True, True]
    assert all(each.isfinite().all() for each in after.seen[-1])


def test_a_skipped_steps_batch_is_saved_for_inspection(tmp_path):
    module = sdft(Poisoned)
    module.poison = {3: ("loss", math.nan)}
    train(module, tmp_path, SkippedSteps())
    [file] = (tmp_path / "skipped").iterdir()
    record = json.loads(file.read_text())
    assert (file.name, record["global_step"], record["task"]) == ("step-4.json", 4, "two")
    assert record["loss"] == "nan"
    assert [set(row) >= {"id", "prompt", "demonstration", "completion"} for row in record["rows"]]
    assert {row["id"].rsplit("-", 1)[0] for row in record["rows"]} == {"two-train"}


@pytest.mark.parametrize(("steps", "ends"), [((0, 1, 3), False), ((1, 2), True), ((2, 3), True)])
def test_too_many_skipped_steps_in_a_row_end_the_run(steps, ends, tmp_path):
    module = sdft(Poisoned)
    module.poison = dict.fromkeys(steps, ("gradient", math.nan))
    if not ends:
        train(module, tmp_path, SkippedSteps(max_in_a_row=3))
        return
    with pytest.raises(FloatingPointError, match=r"in 2 steps in a row.*skipped\.max_in_a_row"):
        train(module, tmp_path, SkippedSteps(max_in_a_row=2))


def test_skipped_steps_go_on_being_counted_after_a_resume():
    counted = SkippedSteps()
    counted.num_skipped, counted.num_in_a_row = 5, 2
    resumed = SkippedSteps()
    resumed.load_state_dict(counted.state_dict())
    assert (resumed.num_skipped, resumed.num_in_a_row) == (5, 2)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match=r"skipped\.max_in_a_row is 0"):
        SkippedSteps(max_in_a_row=0)


def allocate(*_):
    return torch.empty(TOO_MANY, dtype=torch.uint8)


class Greedy(SDFTModule):
    """Asks the allocator for more than there is, in one phase."""

    phase = None

    def sample(self, batch):
        return allocate() if self.phase == "sample" else super().sample(batch)

    def score_teacher(self, batch, rollout, positions):
        if self.phase == "teacher":
            allocate()
        return super().score_teacher(batch, rollout, positions)

    def score_student(self, batch, rollout, positions):
        hidden = super().score_student(batch, rollout, positions)
        if self.phase == "backward":
            hidden.register_hook(allocate)
        return allocate() if self.phase == "student" else hidden

    def _evaluate(self, batch):
        return allocate() if self.phase == "evaluation" else super()._evaluate(batch)


@pytest.mark.parametrize(
    ("phase", "setting"),
    [
        ("sample", "data.batch_size"),
        ("teacher", "model.micro_batch_size"),
        ("student", "model.micro_batch_size"),
        ("backward", "model.activation_checkpointing"),
        ("evaluation", "data.eval_batch_size"),
    ],
)
def test_out_of_memory_names_the_phase_and_what_to_lower(phase, setting, tmp_path):
    module = sdft(Greedy)
    module.phase = phase
    with pytest.raises(RuntimeError) as raised:
        train(module, tmp_path)
    message = explained(raised.value, tmp_path)
    assert f"out of memory in the phase {phase} (" in message
    assert setting in message
    assert "--ckpt_path last" in message


def test_a_mistake_is_not_explained_away(tmp_path):
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), tmp_path) is None
    assert explained(FileNotFoundError(2, "No such file"), tmp_path) is None


class Scripted(SDFTModule):
    """Trains on completions that are given instead of sampled, whatever the prompts are."""

    completions = ()

    def sample(self, batch):
        rollout = super().sample(batch)
        given = [self.completions[index % len(self.completions)] for index in range(len(batch))]
        scripted = replace(rollout, completions=given, logprobs=[[0.0] * len(g) for g in given])
        self.last_rollout = scripted
        return scripted


@pytest.mark.parametrize(
    "completions",
    [[[]], [[], [7, 8, 9]], [[2]], [[7] * 6]],
    ids=["all empty", "one empty", "an end alone", "one that never stops"],
)
def test_odd_completions_are_trained_on(completions, tmp_path):
    module = sdft(Scripted)
    module.completions = completions
    losses = Recorder("on_train_batch_end", lambda t, m: t.callback_metrics["train/loss"].item())
    trainer = train(module, tmp_path, losses, SkippedSteps(max_in_a_row=1))
    assert trainer.global_step == 5
    assert all(map(math.isfinite, losses.seen))
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_all_masked_batches_leave_the_weights_alone(tmp_path):
    module = sdft(num_masked_tokens=100)
    start = [each.detach().clone() for each in module.student.parameters()]
    train(module, tmp_path, skipped := SkippedSteps())
    assert all(map(torch.equal, start, module.student.parameters()))
    assert skipped.num_skipped == 0


@pytest.mark.parametrize(("num_train", "steps"), [((1, 1), 2), ((3, 2), 2), ((5, 4), 3)])
def test_one_row_tasks_small_tasks_and_partial_batches_are_trained(num_train, steps, tmp_path):
    sizes = Recorder("on_train_batch_end", lambda t, m: len(m.last_rollout.completions))
    trainer = train(sdft(), tmp_path, sizes, num_train=num_train, batch_size=4)
    assert trainer.global_step == steps
    assert sum(sizes.seen) == sum(num_train)


def test_rollout_of_no_tokens_counts_none():
    assert Rollout([[], []], [[], []], [True, True]).num_tokens == 0
