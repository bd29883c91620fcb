"""On-policy distillation from a teacher without demonstrations, and re-invoke."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_modules.sdft import SDFTModule
from lightning_modules.sft import REDUCTION, SFTModule
from sdft.loss.hidden_states import LossPositions
from sdft.model.teacher_options import TeacherOptions
from sdft.types import DemonstrationBatch, TokenIds

ANOTHER_MODEL: TeacherOptions = {"kind": "model"}


class OnPolicyDistillationModule(SDFTModule):
    """On-policy distillation: SDFT's loss, with a teacher that reads the prompt alone.

    Student and teacher read the same prompt, and demonstrations are not used.

    Args:
        teacher: Which weights teach, as in SDFTModule; by default another model, named by
            teacher.pretrained.
        base: Other options of SDFTModule and those every method has.
    """

    method_name = "on-policy distillation"
    may_score_demonstrations = False  # there are none
    train_on = "prompts"
    reads_teacher_prompts = False

    def __init__(self, *, teacher: TeacherOptions = ANOTHER_MODEL, **base: Any) -> None:
        super().__init__(teacher=teacher, **base)

    def read_by_teacher(self, batch: DemonstrationBatch) -> Sequence[TokenIds]:
        """B prompts, without a demonstration."""
        return batch.student_prompts


class ReinvokeModule(OnPolicyDistillationModule, SFTModule):
    """Re-invoke (Lu et al. 2025): SFT, then stages that restore the base model's behaviour.

    A stage with demonstrations is SFT, averaged over tokens as SFT is by default. A stage of
    general prompts, a task with ``prompts_only``, is on-policy distillation from the base model:
    the student answers, the base model scores the answer, and the loss is their divergence.

    Args:
        base: Options of SDFTModule, for the stages of prompts, and those every method has.
    """

    method_name = "SFT + re-invoke"

    def __init__(self, **base: Any) -> None:
        super().__init__(teacher={"kind": "base"}, **base)

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """SFT where there are demonstrations, on-policy distillation where there are none."""
        if batch.rows[0].demonstration:
            self.last_rollout = None
            return SFTModule.training_step(self, batch, batch_idx)
        return super().training_step(batch, batch_idx)

    def imitation_weights(self, hidden: Tensor, positions: LossPositions) -> Tensor:
        """(N,) weight of each target token: SFT's, not those of ``reduction``."""
        return self.token_weights(positions, REDUCTION)
