"""How often student and teacher begin with phrases such as "Based on the text"."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import lightning as L

from sdft.loss.preambles import WATCHED_PREAMBLES, Preambles
from sdft.model.teacher import Teacher
from sdft.rollout.request import SamplingSettings
from sdft.seeds import Stream
from sdft.types import DemonstrationBatch


@runtime_checkable
class SelfDistilled(Protocol):
    """What the callback reads of a module; modules without these are not measured."""

    teacher: Teacher
    sampling: SamplingSettings
    preambles_to_mask: Preambles


class OpeningRates(L.Callback):
    """Logs how often completions begin with a watched phrase.

    ``train/preamble_rate_student`` is measured on every step's rollouts,
    ``train/preamble_rate_teacher`` on a few tokens that the teacher samples at intervals. The
    phrases are those of :data:`~sdft.loss.preambles.WATCHED_PREAMBLES` and those whose
    loss is masked.

    Args:
        teacher_samples_every: Optimizer steps between two measurements of the teacher; 0 for none.

    Raises:
        ValueError: ``teacher_samples_every`` is negative.
    """

    def __init__(self, teacher_samples_every: int = 0) -> None:
        if teacher_samples_every < 0:
            raise ValueError(
                f"preambles.teacher_samples_every is {teacher_samples_every}; it must be 0 or more"
            )
        self.teacher_samples_every = teacher_samples_every
        self._watched: Preambles | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Watch for the module's phrases too."""
        if isinstance(pl_module, SelfDistilled):
            phrases = (*WATCHED_PREAMBLES, *pl_module.preambles_to_mask.phrases)
            self._watched = Preambles(phrases, pl_module.tokenizer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: DemonstrationBatch, *_: Any
    ) -> None:
        """The teacher's rate, with the weights that are about to teach."""
        every = self.teacher_samples_every
        if self._watched is None or not every or trainer.global_step % every:
            return
        beginnings = replace(pl_module.sampling, max_new_tokens=self._watched.max_tokens)
        seeds = pl_module.rollout_seeds(len(batch), Stream.TEACHER_PREAMBLES)
        prompts = pl_module.read_by_teacher(batch)
        precision = trainer.precision_plugin.train_step_context()
        with precision, pl_module.teacher.scoring(pl_module.student) as teacher:
            rollout = pl_module.generate(prompts, beginnings, seeds=seeds, model=teacher)
        rate = self._watched.rate(rollout.completions)
        pl_module.log("train/preamble_rate_teacher", rate, batch_size=len(batch))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """The student's rate."""
        rollout = pl_module.last_rollout
        if self._watched is not None and rollout is not None:
            rate = self._watched.rate(rollout.completions)
            pl_module.log("train/preamble_rate_student", rate, batch_size=len(batch))
