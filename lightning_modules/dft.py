"""DFT: dynamic fine-tuning (Wu et al. 2025, arXiv 2508.05629)."""

from __future__ import annotations

from torch import Tensor

from lightning_modules.sft import SFTModule
from sdft.loss.distillation import token_logprobs
from sdft.loss.hidden_states import LossPositions


class DFTModule(SFTModule):
    """Dynamic fine-tuning: SFT whose tokens count as much as the model already believes in them.

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
