"""SDFT with a reward: a rollout's score adds a policy gradient to the divergence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_modules.options import require_above
from lightning_modules.sdft import SDFTModule
from sdft.loss.distillation import cross_entropy_loss
from sdft.loss.hidden_states import LossPositions
from sdft.types import DemonstrationBatch, Rollout


class RewardedSDFTModule(SDFTModule):
    """SDFT plus a policy gradient (the paper's future work).

    Each rollout is scored by its task's own scorer. At every token the loss gains
    -reward_weight * advantage * log p(token), with the token weights of the divergence; the
    advantage of a rollout is its reward minus the mean reward of the batch's other rollouts (on
    the same rank), so it has mean 0 where a batch has several rows. The gradient is that of the
    expected reward for rollouts at temperature 1.

    Args:
        reward_weight: Weight of the reward against the divergence in nats, above 0; without a
            reward this is SDFTModule.
        base: Options of SDFTModule and those every method has.
    """

    method_name = "SDFT + reward"
    may_score_demonstrations = False

    def __init__(self, *, reward_weight: float = 0.1, **base: Any) -> None:
        require_above(0, reward_weight=reward_weight)
        super().__init__(**base)
        self.reward_weight = reward_weight

    def objective(
        self,
        batch: DemonstrationBatch,
        rollout: Rollout,
        positions: LossPositions,
        weights: Tensor,
        student: Tensor,
        teacher: Tensor,
    ) -> Tensor:
        """The divergence plus the policy gradient's loss; arguments as in SDFTModule."""
        divergence = super().objective(batch, rollout, positions, weights, student, teacher)
        rewards = self.rewards(batch, rollout)
        self.log("train/reward", rewards.mean(), prog_bar=True, batch_size=len(batch))
        weights = weights * advantages(rewards)[positions.rows]
        self.passes.projected("student", self.student, len(positions), gradient=True)
        loss = cross_entropy_loss(student, self.student_head, positions.tokens, weights)
        return divergence + self.reward_weight * loss

    def rewards(self, batch: DemonstrationBatch, rollout: Rollout) -> Tensor:
        """(B,) scores of the rollouts, each by its own task's scorer."""
        answers = self.answers(batch.student_prompts, rollout)
        score = self.trainer.datamodule.score
        scores = [score(answer, row) for answer, row in zip(answers, batch.rows, strict=True)]
        return torch.tensor(scores, dtype=torch.float32, device=self.device)


def advantages(rewards: Tensor) -> Tensor:
    """(B,) each reward minus the mean of the others; a single one is kept as it is."""
    num_others = max(len(rewards) - 1, 1)
    return rewards - (rewards.sum() - rewards) / num_others
