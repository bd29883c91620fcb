"""Two processes on one batch against one process."""

import pytest
import torch
from torch import nn

from lightning_modules import SFTModule
from sdft.types import DemonstrationBatch
from tests.processes import on_ranks

ROWS = [([4, 5, 6], [20, 21, 22, 0]), ([7, 8], [30, 0])]  # of unequal lengths
REDUCTIONS = ("token_mean", "sequence_mean")


class Step(nn.Module):
    """A module's training step as a forward pass."""

    def __init__(self, reduction):
        super().__init__()
        self.module = SFTModule(pretrained="tiny-random", reduction=reduction)

    def forward(self, rows):
        prompts, demonstrations = zip(*rows, strict=True)
        batch = DemonstrationBatch(
            rows=tuple(None for _ in rows),
            student_prompts=prompts,
            teacher_prompts=prompts,
            demonstrations=demonstrations,
        )
        return self.module.training_step(batch, 0)


def gradients_of_a_rank(rank, directory):
    for reduction in REDUCTIONS:
        step = Step(reduction)
        replicated = nn.parallel.DistributedDataParallel(step)
        replicated([ROWS[rank]]).backward()
        found = [parameter.grad for parameter in step.parameters()]
        torch.save(found, f"{directory}/{reduction}-{rank}.pt")


@pytest.mark.slow
def test_gradients_over_two_ranks_are_those_of_one_process_with_all_rows(tmp_path):
    on_ranks(gradients_of_a_rank, tmp_path)
    for reduction in REDUCTIONS:
        alone = Step(reduction)
        alone(ROWS).backward()
        for rank in range(2):
            found = torch.load(tmp_path / f"{reduction}-{rank}.pt")
            for gradient, parameter in zip(found, alone.parameters(), strict=True):
                torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-5)
