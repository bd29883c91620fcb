"""SFT, the baseline: cross-entropy on demonstrations."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_modules.base import ContinualModule
from lightning_modules.options import checked_reduction
from sdft.objective import cross_entropy_loss
from sdft.scoring import LossPositions
from sdft.types import DemonstrationBatch


class SFTModule(ContinualModule):
    """Supervised fine-tuning on demonstrations (section 4, baseline).

    Args:
        reduction: What the loss averages over: token_mean (all demonstration tokens of the
            batch) or sequence_mean (tokens of a demonstration, then demonstrations).
        base: Options every method has.
    """

    method_name = "SFT"

    def __init__(self, *, reduction: str = "token_mean", **base: Any) -> None:
        super().__init__(**base)
        self.reduction = checked_reduction(reduction)

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the demonstrations given the prompts."""
        positions = LossPositions.of(batch.demonstrations, device=self.device)
        hidden = self.hidden_states(
            self.student, batch.student_prompts, batch.demonstrations, positions
        )
        loss = cross_entropy_loss(
            hidden,
            self.student_head,
            positions.tokens,
            self.token_weights(positions.rows, positions.num_sequences),
        )
        self.clock.lap("student")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self.log("train/loss_tokens", float(len(positions)), batch_size=len(batch))
        return loss
