"""The in-context check and the drift from the base model."""

import json
import math
from contextlib import nullcontext

import pytest
import torch

from callbacks import DriftTracker, InContextCheck
from callbacks.in_context import advice, in_words
from lightning_modules import SDFTModule, SFTModule
from sdft.loss.probes import kl_and_entropy
from sdft.model.head import VocabularyHead
from sdft.model.lora import LoRA
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest
from sdft.types import Rollout
from tests.child_runs import run, write_config
from tests.lightning_modules.test_modules import (
    Recorder,
    Referenced,
    sdft,
    train,
    trained_under_watch,
)


def test_kl_and_entropy_are_those_of_the_whole_distributions(tiny):
    head = VocabularyHead.of(tiny.model)
    hidden, other = torch.randn(2, 9, tiny.model.config.hidden_size)
    logprobs, others = (head.logits(each).double().log_softmax(-1) for each in (hidden, other))
    kl, entropy = kl_and_entropy(hidden, head, other, head)
    expected = (logprobs.exp() * (logprobs - others)).sum(-1)
    torch.testing.assert_close(kl.double(), expected, rtol=1e-4, atol=1e-6)
    expected = -(logprobs.exp() * logprobs).sum(-1)
    torch.testing.assert_close(entropy.double(), expected, rtol=1e-5, atol=0)
    assert kl_and_entropy(hidden, head, hidden, head)[0].abs().max() < 1e-6


@pytest.mark.parametrize(
    "options", [{}, {"lora": LoRA(r=2)}, {"teacher": {"kind": "base"}}], ids=str
)
def test_probes_leave_weights_rollouts_modes_and_noise_as_they_were(options, tmp_path):
    weights, without = trained_under_watch(sdft(**options), tmp_path / "off")
    probes = (InContextCheck(num_rows=3), DriftTracker(num_prompts=2))
    probed, seen = trained_under_watch(sdft(**options), tmp_path / "on", *probes)
    assert len(probes[0].rows) == 2
    assert len(probes[1].rows) == 3
    assert seen == without
    assert probed.keys() == weights.keys()
    assert all(torch.equal(probed[name], weights[name]) for name in weights)


def test_the_check_asks_the_coming_stages_rows_as_training_does(tmp_path):
    class Watched(Referenced):
        """Keeps what a check could see at the start of each stage."""

        def on_train_batch_start(self, batch, batch_idx):
            super().on_train_batch_start(batch, batch_idx)
            if self.at_stage_start():
                self.references = [*getattr(self, "references", []), self.reference()]

        @torch.no_grad()
        def reference(self):
            task = self.trainer.datamodule.tasks[self.stage]
            rows = self.trainer.datamodule.reader.train_batch(task.train[:3])
            divergences = []
            for prompt, shown in zip(rows.student_prompts, rows.teacher_prompts, strict=True):
                request = RolloutRequest([shown], self.greedy, self.end_ids)
                (answer,) = sample(self.teacher.model, request).completions
                teacher = self.log_probs(self.teacher.model, shown, answer)
                student = self.log_probs(self.student, prompt, answer)
                divergences.append((teacher.exp() * (teacher - student)).sum(-1))
            return torch.cat(divergences).mean().item()

    module, check = sdft(Watched, teacher={"reset_each_stage": False}), InContextCheck(3)
    torch.manual_seed(0)
    with torch.no_grad():  # another teacher, so that the divergence is no rounding error
        for parameter in module.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    train(module, tmp_path, check)
    assert [entry["task"] for entry in check.rows] == ["one", "two"]
    assert [entry["global_step"] for entry in check.rows] == [0, 3]
    found = [entry["kl_teacher_student"] for entry in check.rows]
    assert found == pytest.approx(module.references, rel=1e-3)
    assert json.loads((tmp_path / "in_context.json").read_text())["rows"] == check.rows


class ParrotEngine:
    """Answers every prompt with the same tokens."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, model, request):
        rows = len(request.prompts)
        return Rollout([self.answer] * rows, [[0.0]] * rows, [True] * rows)

    def prepared(self, model):
        return nullcontext()


def test_a_check_scores_student_and_teacher_on_the_same_rows(tmp_path, capsys):
    class Parrot(SDFTModule):
        """Its rollout engine answers every prompt with a letter."""

        def on_train_start(self):
            super().on_train_start()
            letter = self.tokenizer("a", add_special_tokens=False)["input_ids"]
            self.rollout_engine = ParrotEngine(letter)

    check = InContextCheck(num_rows=6)
    train(sdft(Parrot), tmp_path, check)
    assert "SDFT will not help with this task" in capsys.readouterr().out
    first = check.rows[0]
    assert first["num_rows"] == 6
    assert first["student_accuracy"] == pytest.approx(2 / 6)  # demonstrations are a, b, c, …
    assert first["student_length"] == 1
    assert 1 <= first["teacher_length"] <= 6


def test_the_warning_is_for_teachers_that_are_not_better():
    def found(student, teacher):
        numbers = {"student_accuracy": student, "teacher_accuracy": teacher}
        return {"task": "one", "num_rows": 8, "kl_teacher_student": 0.5, **numbers}

    assert in_words(found(0.25, 0.75)) == (
        "In-context check of one (8 rows): student 25% correct, teacher with demonstration 75%, "
        "KL(teacher || student) 0.50 nats a token"
    )
    assert advice(found(0.25, 0.75)) is None
    assert "the teacher answers 25% of 8 rows" in advice(found(0.25, 0.25))
    assert "the student alone 50%" in advice(found(0.5, 0.25))


def test_a_resumed_run_goes_on_from_the_checkpoints_checks_and_rows(tmp_path):
    def probes():
        return InContextCheck(num_rows=2), DriftTracker(num_prompts=2)

    whole = probes()
    module = sdft()
    ckpt = tmp_path / "1.ckpt"
    saved = Recorder(
        "on_train_end",
        lambda trainer, module: trainer.save_checkpoint(tmp_path / f"{module.stage + 1}.ckpt"),
    )
    train(module, tmp_path, *whole, saved)
    for name in ("in_context.json", "drift.json"):
        (tmp_path / name).rename(tmp_path / f"whole-{name}")
    resumed = probes()
    train(sdft(), tmp_path, *resumed, ckpt_path=ckpt)
    for name in ("in_context.json", "drift.json"):
        assert (tmp_path / name).read_text() == (tmp_path / f"whole-{name}").read_text()
    assert resumed[1].rows[0]["tasks"]["one"]["kl_student_base"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lora", [None, LoRA(r=2)], ids=["all weights", "adapters"])
def test_drift_is_measured_against_the_model_before_training(lora, tmp_path):
    module, drift = sdft(SFTModule, lora=lora), DriftTracker(num_prompts=3)
    train(module, tmp_path, drift)
    assert [row["after"] for row in drift.rows] == [None, "one", "two"]
    for row in drift.rows:
        for numbers in row["tasks"].values():
            assert 0 < numbers["entropy"] <= math.log(module.student.config.vocab_size)
            assert 1 <= numbers["completion_length"] <= module.greedy.max_new_tokens
            moved = numbers["kl_student_base"]
            assert moved > 1e-3 if row["stage"] else moved == pytest.approx(0, abs=1e-6)
    base = sdft(SFTModule, lora=lora).student.state_dict()
    with drift._base.scoring(module.student) as model:
        for name, weight in model.state_dict().items():
            assert "lora" in name or torch.equal(weight, base[name])


def test_without_prompts_no_base_model_is_held(tmp_path):
    drift = DriftTracker()
    train(sdft(SFTModule), tmp_path, drift, InContextCheck())
    assert drift._base is None
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: InContextCheck(num_rows=-1), r"in_context\.num_rows is -1"),
        (lambda: DriftTracker(num_prompts=-1), r"drift\.num_prompts is -1"),
    ],
)
def test_numbers_of_rows_out_of_range_are_refused(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


def test_validate_checks_every_task_without_training(tmp_path):
    config, log = write_config(tmp_path), tmp_path / "log"
    args = (f"--config={config}", f"--run_dir={tmp_path / 'run'}", "--in_context.num_rows=4")
    assert run("validate", *args, log=log) == 0, log.read_text()
    text = log.read_text()
    for task in ("one", "two"):
        assert f"In-context check of {task} (" in text
        assert f"accuracy/{task}" in text
    assert "SDFT will not help with this task" in text
    assert not (tmp_path / "run" / "in_context.json").exists()
