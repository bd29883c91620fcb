import json
from dataclasses import replace

import pytest
import torch
from tokenizers import AddedToken

from datamodules import ContinualDataModule
from lightning_modules import OnPolicyDistillationModule, ReinvokeModule, SDFTModule, SFTModule
from sdft.model.pretrained import save_model
from sdft.model.teacher import make_teacher
from sdft.model.tiny_model import byte_tokenizer, tiny_model
from sdft.tasks.sources import fetched
from sdft.tasks.task_spec import TaskSpec
from sdft.types import Demonstration
from tests.conftest import write_rows
from tests.lightning_modules.one_step import BATCH, PROMPTS, assert_step_equals, logprobs, moved
from tests.lightning_modules.test_modules import Recorder, sdft, train
from tests.lightning_modules.test_teacher_samples import SaveAt
from tests.sample_tasks import letter_rows, write_task


def model(name):
    return {"kind": "model", "pretrained": name}


@pytest.fixture
def another(tmp_path):
    """A folder with another random model of the same tokens."""
    tokenizer = byte_tokenizer()
    save_model(tiny_model(len(tokenizer), seed=7), tokenizer, tmp_path / "another")
    return str(tmp_path / "another")


@pytest.fixture
def specs(tmp_path):
    """A task with demonstrations, then general prompts without."""
    folder = tmp_path / "general"
    prompts = [{"id": f"g{index}", "prompt": f"Tell me about {index}."} for index in range(4)]
    write_rows(folder / "train.jsonl", prompts)
    write_rows(folder / "validation.jsonl", letter_rows("general", "validation", 2))
    general = TaskSpec("general", path=str(folder), scorer="exact_label", prompts_only=True)
    return [write_task(tmp_path, "one"), general]


def assert_distills(module, teacher, prompts):
    """The step's loss and gradient are those of the KL from a teacher that reads ``prompts``."""
    loss = module.training_step(BATCH, 0)
    del loss
    means = []
    for prompt, read, tokens in zip(PROMPTS, prompts, module.last_rollout.completions, strict=True):
        student, taught = logprobs(module.student, prompt, tokens), logprobs(teacher, read, tokens)
        taught = taught.detach()
        means.append((taught.exp() * (taught - student)).sum(-1).mean())
    assert_step_equals(module, torch.stack(means).mean())


def test_another_model_teaches_from_the_prompt_alone(another):
    module = moved(OnPolicyDistillationModule, teacher=model(another))
    assert_distills(module, module.teacher.model, PROMPTS)


def test_another_model_may_teach_sdft_with_the_demonstration_in_context(another):
    module = moved(SDFTModule, teacher=model(another))
    assert_distills(module, module.teacher.model, BATCH.teacher_prompts)


def test_another_model_never_moves_and_is_in_no_checkpoint(another, tmp_path):
    module = sdft(OnPolicyDistillationModule, teacher=model(another))
    before = [each.clone() for each in module.teacher.parameters()]
    saved = tmp_path / "at.ckpt"
    train(module, tmp_path / "whole", SaveAt(4, saved), train_on="prompts")
    for own, expected in zip(module.teacher.parameters(), before, strict=True):
        assert torch.equal(own, expected)
    names = torch.load(saved, weights_only=True)["state_dict"]
    assert names
    assert not any(name.startswith("teacher") for name in names)
    resumed = sdft(OnPolicyDistillationModule, teacher=model(another))
    train(resumed, tmp_path / "rest", train_on="prompts", ckpt_path=saved)
    for own, expected in zip(resumed.parameters(), module.parameters(), strict=True):
        assert torch.equal(own, expected)
    other = sdft(OnPolicyDistillationModule, teacher=model("tiny-random"))
    with pytest.raises(ValueError, match=r"set model\.teacher\.pretrained to what the checkpoint"):
        train(other, tmp_path / "other", train_on="prompts", ckpt_path=saved)


def test_a_padded_head_of_a_teacher_is_cut_to_the_students(tmp_path):
    tokenizer = byte_tokenizer()
    padded = tiny_model(len(tokenizer) + 5, seed=7)
    save_model(padded, tokenizer, tmp_path / "padded")
    teacher = make_teacher(tiny_model(len(tokenizer)), model(str(tmp_path / "padded")), tokenizer)
    tokens = torch.tensor([[5, 9, 11]])
    expected = padded.eval()(tokens).logits[..., : len(tokenizer)]
    torch.testing.assert_close(teacher.model(tokens).logits, expected)
    with pytest.raises(ValueError, match="has 259 entries, the student's 300"):
        make_teacher(tiny_model(300), model("tiny-random"), tokenizer)


def test_a_teacher_with_other_tokens_is_refused_with_some_of_them(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<|think|>")])
    save_model(tiny_model(len(tokenizer)), tokenizer, tmp_path / "other")
    complaint = r"another tokenizer than the student: 1 tokens differ \('<\|think\|>': student None"
    with pytest.raises(ValueError, match=complaint):
        sdft(OnPolicyDistillationModule, teacher=model(str(tmp_path / "other")))


def test_the_other_model_has_to_be_named():
    with pytest.raises(ValueError, match=r"name the other model with teacher\.pretrained"):
        sdft(OnPolicyDistillationModule)


def test_reinvoke_imitates_demonstrations_and_distills_the_base_on_prompts_alone(specs, tmp_path):
    steps = []

    class Watched(ReinvokeModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            alone = batch.teacher_prompts == batch.student_prompts
            steps.append((self.stage, alone, self.last_rollout is not None))
            return loss

    module = sdft(Watched)
    base = [each.clone() for each in module.teacher.parameters()]
    train(module, tmp_path, specs=specs, train_on="prompts")
    assert steps == [(0, False, False)] * 3 + [(1, True, True)] * 2
    for own, expected in zip(module.teacher.parameters(), base, strict=True):
        assert torch.equal(own, expected)


def test_reinvokes_stage_with_demonstrations_is_sft_on_the_same_tokens():
    rows = (Demonstration("a", "t", (), "x", "y"),) * len(PROMPTS)
    batch = replace(BATCH, rows=rows)
    plain = moved(SFTModule)
    for options in ({}, {"reduction": "sequence_mean"}):
        found = moved(ReinvokeModule, **options)
        torch.testing.assert_close(found.training_step(batch, 0), plain.training_step(batch, 0))
    sequences = moved(SFTModule, reduction="sequence_mean").training_step(batch, 0)
    assert not torch.isclose(sequences, plain.training_step(batch, 0))


def test_reinvoke_pulls_the_student_back_to_the_base_model(specs, tmp_path):
    losses = Recorder(
        "on_train_batch_end", lambda trainer, module: trainer.callback_metrics["train/loss"].item()
    )
    options = {"specs": specs, "train_on": "prompts", "epochs_per_stage": 20}
    train(sdft(ReinvokeModule), tmp_path, losses, **options)
    distilled = losses.seen[60:]
    assert len(distilled) == 40
    assert sum(distilled[-5:]) < 0.3 * sum(distilled[:5])


def test_prompts_alone_are_refused_where_demonstrations_are_learnt(specs, tiny):
    with pytest.raises(ValueError, match="task 'general' has prompts_only, and this method trains"):
        ContinualDataModule(specs, tiny.tokenizer)
    with pytest.raises(ValueError, match=r"data.replay_fraction is 0.5: stages with and without"):
        ContinualDataModule(specs, tiny.tokenizer, train_on="prompts", replay_fraction=0.5)


def test_a_prompts_only_task_leaves_demonstrations_out(tmp_path, tiny):
    spec = write_task(tmp_path, "one")
    spec.prompts_only = True
    data = ContinualDataModule([spec], tiny.tokenizer, train_on="prompts")
    assert {row.demonstration for row in data.tasks[0].train} == {""}


def test_the_shipped_general_prompts_are_distinct():
    folder = fetched("general_prompts")
    rows = [json.loads(line) for path in folder.iterdir() for line in path.open()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 64
