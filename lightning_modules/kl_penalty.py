"""SFT with a KL penalty towards the base model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_modules.options import require, require_above
from lightning_modules.sft import SFTModule
from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.hidden_states import LossPositions
from sdft.model.teacher import make_teacher
from sdft.types import DemonstrationBatch

DIRECTIONS = ("reverse_kl", "forward_kl")


class KLPenaltyModule(SFTModule):
    """SFT plus a KL penalty towards the base model, at every demonstration token.

    The loss is -log p(y) + penalty * KL, both weighted by the reduction; base and student read
    the prompt and the same demonstration tokens.

    Args:
        penalty: Weight of the KL, above 0.
        penalty_direction: reverse_kl is KL(student || base), forward_kl is KL(base || student).
        base: Options of SFTModule and those every method has.
    """

    method_name = "SFT + KL"

    def __init__(
        self,
        *,
        penalty: float = 0.1,
        penalty_direction: Literal["reverse_kl", "forward_kl"] = "reverse_kl",
        **base: Any,
    ) -> None:
        require_above(0, penalty=penalty)
        named = penalty_direction in DIRECTIONS
        require(named, "penalty_direction", penalty_direction, " or ".join(DIRECTIONS))
        super().__init__(**base)
        self.penalty = penalty
        self.divergence = make_divergence(penalty_direction)
        self.base_model = make_teacher(self.student, {"kind": "base"})
        self.base_head = self.base_model.head(self.student_head)

    def imitation_loss(
        self, batch: DemonstrationBatch, hidden: Tensor, positions: LossPositions
    ) -> Tensor:
        """Cross-entropy plus penalty * KL at the same tokens."""
        with torch.no_grad(), self.base_model.scoring(self.student) as model:
            targets = self.targets(batch)
            base = self.scored("base", model, batch.student_prompts, targets, positions)
        self.passes.projected("student", self.student, len(positions), gradient=True)
        kl = distillation_loss(
            hidden,
            self.student_head,
            base,
            self.base_head,
            tokens=positions.tokens,
            weights=self.imitation_weights(hidden, positions),
            divergence=self.divergence,
        ).loss
        self.log("train/kl_to_base", kl, batch_size=len(batch))
        return super().imitation_loss(batch, hidden, positions) + self.penalty * kl
