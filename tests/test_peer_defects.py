"""Defects found in other implementations of SDFT; each test says that it is not one of ours."""

import os
from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing, nn

from datamodules import ContinualDataModule
from lightning_modules import SDFTModule
from sdft.head import VocabularyHead
from sdft.losses import make_divergence, reduction_weights
from sdft.objective import distillation_loss
from sdft.prompting import TeacherTemplate
from sdft.scoring import LossPositions, completion_hidden_states
from sdft.task_spec import TaskSpec
from sdft.tiny import tiny_model
from tests.conftest import write_rows
from tests.test_modules import sdft, train


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
    os.environ["OMP_NUM_THREADS"] = "1"
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=5),
    )
    module = MaskedLoss()
    nn.parallel.DistributedDataParallel(module)(COMPLETIONS[rank]).backward()
    found = [each.grad for each in module.student.parameters()]
    torch.save(found, f"{directory}/rank-{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.xfail(reason="both ranks finish, but the gradient is not their mean; cause unknown")
def test_a_rank_whose_completions_are_all_masked_takes_part_in_the_step(tmp_path):
    multiprocessing.spawn(step_of_a_rank, (str(tmp_path),), nprocs=2)
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
