"""Defects found in other implementations of SDFT; each test says that it is not one of ours."""

import shutil

import lightning as L
import pytest
import torch
from torch import nn

from datamodules import ContinualDataModule
from lightning_modules import SDFTModule, SFTModule
from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.loss.reductions import reduction_weights
from sdft.model.head import VocabularyHead
from sdft.model.lora import LoRA
from sdft.model.pretrained import load_model, save_model
from sdft.model.tiny_model import tiny_model
from sdft.tasks.prompting import TeacherTemplate
from sdft.tasks.task_spec import TaskSpec
from tests.conftest import write_rows
from tests.lightning_modules.test_modules import Recorder, sdft, train
from tests.processes import on_ranks


class SaveAt(L.Callback):
    """Writes a checkpoint after a step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)


def losses():
    return Recorder(
        "on_train_batch_end", lambda trainer, module: trainer.callback_metrics["train/loss"].item()
    )


def assert_resumes_exactly(folder, step, **options):
    """Train with a checkpoint at a step, go on from it, compare every bit; return its content."""
    whole, again, path = sdft(**options), sdft(**options), folder / "at.ckpt"
    recorded, resumed = losses(), losses()
    train(whole, folder, SaveAt(step, path), recorded)
    train(again, folder, resumed, ckpt_path=path)
    assert resumed.seen == recorded.seen[step:]
    for name, expected in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], expected), name
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("reset", [True, False])
def test_the_ema_teacher_is_in_the_checkpoint_and_a_resumed_run_has_the_same_losses(
    reset, tmp_path
):
    state = assert_resumes_exactly(
        tmp_path, 4, teacher={"rate": 0.25, "update_every": 2, "reset_each_stage": reset}
    )["state_dict"]
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(state[f"teacher.model.{name}"], state[f"student.{name}"])


@pytest.mark.parametrize("teacher", ["ema", "stage_start", "base", "student"])
def test_a_run_with_adapters_resumes_exactly_and_its_checkpoint_holds_no_backbone(
    teacher, tmp_path
):
    lora = LoRA(r=2, dropout=0.2, backbone_dtype="bfloat16")
    checkpoint = assert_resumes_exactly(tmp_path, 2, teacher={"kind": teacher}, lora=lora)
    names = checkpoint["state_dict"].keys()
    assert all("lora_" in name or name.startswith("teacher.adapters.") for name in names)
    copied = teacher in ("ema", "stage_start")
    assert len(names) == 28 * (2 if copied else 1)  # A and B of 14 layers
    numbers = sum(each.numel() for each in checkpoint["state_dict"].values())
    assert numbers < 0.5 * sum(each.numel() for each in sdft().student.parameters())


def test_a_later_stages_teacher_is_the_student_in_memory_and_nothing_is_reloaded(tiny, tmp_path):
    source = tmp_path / "model"
    save_model(tiny.model, tiny.tokenizer, source)
    for teacher in ("ema", "stage_start", "base"):
        module = sdft(pretrained=str(source), teacher={"kind": teacher})
        shutil.move(source, tmp_path / "away")  # a reload would fail
        weights = Recorder(
            "on_train_batch_start",
            lambda trainer, module: (
                module.student.model.norm.weight.clone(),
                module.teacher.model.model.norm.weight.clone(),
            ),
        )
        train(module, tmp_path, weights)
        student, own = weights.seen[3]  # the second stage's first step
        base = weights.seen[0][0]
        assert not torch.equal(student, base)
        assert torch.equal(own, base if teacher == "base" else student)
        shutil.move(tmp_path / "away", source)


@pytest.mark.parametrize(
    ("held", "asked", "complaint"),
    [
        (
            {"teacher": {"kind": "base"}},
            {},
            r"model\.teacher\.kind base, this configuration has ema",
        ),
        ({}, {"lora": LoRA(r=2)}, r"model\.lora null, this configuration has LoRA\(r=2"),
        ({"lora": LoRA(r=2)}, {}, r"model\.lora LoRA\(r=2.* has null"),
        ({"lora": LoRA(r=2)}, {"lora": LoRA(r=3)}, r"model\.lora LoRA\(r=2.* has LoRA\(r=3"),
    ],
)
def test_a_checkpoint_of_another_teacher_or_adapter_is_refused(held, asked, complaint, tmp_path):
    train(sdft(**held), tmp_path, SaveAt(2, tmp_path / "at.ckpt"))
    with pytest.raises(ValueError, match=f"made with {complaint}") as refused:
        train(sdft(**asked), tmp_path, ckpt_path=tmp_path / "at.ckpt")
    assert "start a new run without --ckpt_path" in str(refused.value)


def test_adapters_are_refused_on_another_backbone_than_their_own(tiny, tmp_path):
    lora = LoRA(r=2)
    train(sdft(SFTModule, lora=lora), tmp_path, SaveAt(2, tmp_path / "at.ckpt"))
    with torch.no_grad():
        tiny.model.model.norm.weight[0] += 1e-3
    save_model(tiny.model, load_model("tiny-random").tokenizer, tmp_path / "other")
    other = sdft(SFTModule, lora=lora, pretrained=str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"made with model\.pretrained of weights"):
        train(other, tmp_path, ckpt_path=tmp_path / "at.ckpt")


def test_a_long_demonstration_leaves_the_question_in_the_teachers_prompt(tiny, tmp_path):
    question, demonstration = "Which way to the station?", "Left, then right. " * 100
    for split in ("train", "validation"):
        row = {"id": split, "prompt": question, "demonstration": demonstration, "answer": "x"}
        write_rows(tmp_path / f"{split}.jsonl", [row])
    data = ContinualDataModule(
        [TaskSpec(name="way", path=str(tmp_path), scorer="contains")],
        tiny.tokenizer,
        batch_size=1,
        teacher_template="paper",
        max_prompt_tokens=4096,
    )
    batch = next(iter(data.train_dataloader()))
    text = tiny.tokenizer.decode(batch.teacher_prompts[0])
    assert len(batch.teacher_prompts[0]) > 20 * len(batch.student_prompts[0])
    assert question in text
    assert demonstration.strip() in text


def test_braces_in_a_demonstration_and_in_a_template_are_plain_text(row):
    template = TeacherTemplate(
        '{% call user() %}Like {"name": {}}: {{ demonstration }}\n{{ question }}{% endcall %}',
        "braces",
    )
    (turn,) = template.messages(row)
    assert turn["content"] == f'Like {{"name": {{}}}}: {row.demonstration}\nWhat is {{x}}?'


class MaskedLoss(nn.Module):
    """A student's loss on one completion with its first three tokens masked."""

    def __init__(self):
        super().__init__()
        self.student, self.teacher = tiny_model(20), tiny_model(20, seed=1).requires_grad_(False)

    def forward(self, completion):
        positions = LossPositions.of([completion], 3)
        hidden = [
            completion_hidden_states(model, [[3, 4]], [completion], positions)
            for model in (self.student, self.teacher)
        ]
        return distillation_loss(
            hidden[0],
            VocabularyHead.of(self.student, check=False),
            hidden[1],
            VocabularyHead.of(self.teacher, check=False),
            tokens=positions.tokens,
            weights=reduction_weights("sequence_mean", positions.rows, 1),
            divergence=make_divergence("forward_kl"),
        ).loss


COMPLETIONS = ([5, 6, 7, 8, 9], [5, 6])  # the second is shorter than the mask


def step_of_a_rank(rank, directory):
    module = MaskedLoss()
    replicated = nn.parallel.DistributedDataParallel(module)
    replicated(COMPLETIONS[rank]).backward()
    found = [each.grad for each in module.student.parameters()]
    torch.save(found, f"{directory}/rank-{rank}.pt")


def test_a_rank_whose_completions_are_all_masked_takes_part_in_the_step(tmp_path):
    on_ranks(step_of_a_rank, tmp_path)
    alone = MaskedLoss()
    alone(COMPLETIONS[0]).backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"rank-{rank}.pt")
        for gradient, parameter in zip(found, alone.student.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad / 2)


def test_the_last_partial_batch_is_trained(tmp_path):
    class Seen(SDFTModule):
        def training_step(self, batch, batch_idx):
            seen.append([row.id for row in batch.rows])
            return super().training_step(batch, batch_idx)

    seen = []
    train(sdft(Seen), tmp_path, num_train=(5, 4), batch_size=4)
    assert [len(rows) for rows in seen] == [4, 1, 4]
    assert len({each for rows in seen[:2] for each in rows}) == 5
