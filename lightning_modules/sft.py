"""SFT and its relatives: CPT on raw documents, and DFT (Wu et al. 2025, arXiv 2508.05629)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_modules.base import ContinualModule
from lightning_modules.options import check_reduction
from sdft.loss.distillation import cross_entropy_loss, token_logprobs
from sdft.loss.hidden_states import LossPositions
from sdft.loss.reductions import Reduction
from sdft.types import DemonstrationBatch, TokenIds

REDUCTION: Reduction = "token_mean"  # of SFT, unless another is asked for


class SFTModule(ContinualModule):
    """Supervised fine-tuning on demonstrations (section 4, baseline).

    Args:
        reduction: What the loss averages over: token_mean (all demonstration tokens of the
            batch) or sequence_mean (tokens of a demonstration, then demonstrations).
        base: Options every method has.
    """

    method_name = "SFT"

    def __init__(self, *, reduction: Reduction = REDUCTION, **base: Any) -> None:
        check_reduction(reduction)
        super().__init__(**base)
        self.reduction = reduction

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """One SFT step: cross-entropy of the targets, given the prompts."""
        targets = self.targets(batch)
        positions = LossPositions.of(targets, device=self.device)
        hidden = self.scored("student", self.student, batch.student_prompts, targets, positions)
        loss = self.imitation_loss(batch, hidden, positions)
        self.clock.lap("student")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        self.log("train/loss_tokens", float(len(positions)), batch_size=len(batch))
        return self.anchored(loss)

    def targets(self, batch: DemonstrationBatch) -> Sequence[TokenIds]:
        """B completions to imitate."""
        return batch.demonstrations

    def imitation_loss(
        self, batch: DemonstrationBatch, hidden: Tensor, positions: LossPositions
    ) -> Tensor:
        """Weighted cross-entropy of the targets' tokens.

        Args:
            batch: What the step reads.
            hidden: (N, D) the student's hidden states, with gradient.
            positions: The N target tokens.
        """
        weights = self.imitation_weights(hidden, positions)
        return cross_entropy_loss(hidden, self.student_head, positions.tokens, weights)

    def imitation_weights(self, hidden: Tensor, positions: LossPositions) -> Tensor:
        """(N,) weight of each target token: the reduction's."""
        return self.token_weights(positions)


class CPTModule(SFTModule):
    """Continual pre-training: next-token cross-entropy on every token of raw documents.

    The documents are the contexts of a task's training rows, each once, without prompt or chat
    template; the task is evaluated by its questions as with any other method.

    Args:
        base: Options of SFTModule and those every method has.
    """

    method_name = "CPT"
    train_on = "documents"


class DFTModule(SFTModule):
    """Dynamic fine-tuning: SFT with each token weighted by the model's own probability of it.

    The loss of a token y is -sg(p(y)) log p(y), where sg passes no gradient: its gradient is that
    of -p(y), while SFT's grows as 1 / p(y) on tokens the model finds unlikely. Not to be confused
    with offline distillation.

    Args:
        base: Options of SFTModule and those every method has.
    """

    method_name = "DFT"

    def imitation_weights(self, hidden: Tensor, positions: LossPositions) -> Tensor:
        """(N,) the reduction's weights times the model's own probability of each token."""
        self.passes.projected("student", self.student, len(positions), gradient=False)
        logprobs = token_logprobs(hidden, self.student_head, positions.tokens)
        return super().imitation_weights(hidden, positions) * logprobs.exp()
