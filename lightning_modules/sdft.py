"""SDFT: the model learns from itself, shown a demonstration (section 3)."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_modules.base import ContinualModule, require
from sdft.head import VocabularyHead
from sdft.losses import REDUCTIONS, make_divergence, reduction_weights
from sdft.objective import distillation_loss
from sdft.openings import WATCHED_OPENINGS, Openings
from sdft.rollout import SamplingSettings, sample
from sdft.scoring import LossPositions, completion_hidden_states
from sdft.stages import mix_seed
from sdft.teacher import EMATeacher
from sdft.types import DemonstrationBatch, Rollout

TEACHER_STREAM = 1  # sampling noise apart from the student's


class SDFTModule(ContinualModule):
    """Self-Distillation Fine-Tuning.

    Per optimizer step: the student samples a completion per prompt; the teacher, a slow copy of
    the student, reads the same prompt with the demonstration in context and scores the
    student's tokens; the loss is the divergence between the two next-token distributions at
    every completion token; the teacher follows the student.

    Args:
        divergence: What is minimised: forward_kl is KL(teacher || student), as all published
            results used; reverse_kl is KL(student || teacher), as the paper's equation 1.
        reduction: What the loss averages over: sequence_mean (tokens of a completion, then
            completions; the paper's code) or token_mean (all completion tokens of the batch).
        num_loss_tokens_to_skip: First completion tokens without loss, so that the student does
            not pick up openings such as "Based on the text" (the paper: 3).
        opening_phrases_to_skip: A completion that begins with one of these phrases carries no
            loss up to the phrase's end, whatever its case; the longer of the two masks holds.
        teacher_samples_every: Optimizer steps between two measurements of how often the teacher's
            own completions begin with a watched phrase (a few sampled tokens); 0 for none. The
            student's rate is logged at every step.
        teacher_rate: Share of the student the teacher takes over per optimizer step; 0 keeps
            the teacher frozen where it started.
        reset_teacher: Start every stage's teacher from the student; off, it goes on across
            stages, so that with a rate of 0 it stays the base model.
        temperature: Sampling temperature of the rollouts.
        top_p: Nucleus of the rollouts; 1 samples the student's own distribution.
        top_k: Rollout tokens come from the k most likely; 0 for all.
        base: Options every method has.
    """

    method_name = "SDFT"

    def __init__(
        self,
        *,
        divergence: str = "forward_kl",
        reduction: str = "sequence_mean",
        num_loss_tokens_to_skip: int = 0,
        opening_phrases_to_skip: list[str] | None = None,
        teacher_samples_every: int = 0,
        teacher_rate: float = 0.01,
        reset_teacher: bool = True,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require(
            num_loss_tokens_to_skip >= 0,
            "num_loss_tokens_to_skip",
            num_loss_tokens_to_skip,
            "0 or more",
        )
        require(
            teacher_samples_every >= 0, "teacher_samples_every", teacher_samples_every, "0 or more"
        )
        require(reduction in REDUCTIONS, "reduction", reduction, " or ".join(REDUCTIONS))
        self.divergence = make_divergence(divergence)
        require(
            not (
                self.divergence.prefix_score
                and (num_loss_tokens_to_skip or opening_phrases_to_skip or temperature != 1.0)
            ),
            "divergence",
            divergence,
            "used with num_loss_tokens_to_skip 0, no opening_phrases_to_skip and temperature 1: "
            "its prefix score needs all tokens as drawn",
        )
        self.reduction = reduction
        self.reset_teacher = reset_teacher
        self.num_loss_tokens_to_skip = num_loss_tokens_to_skip
        self.skipped_openings = Openings(opening_phrases_to_skip or [], self.tokenizer)
        self.watched_openings = Openings(
            [*WATCHED_OPENINGS, *self.skipped_openings.phrases], self.tokenizer
        )
        self.teacher_samples_every = teacher_samples_every
        self.sampling = SamplingSettings(
            self.greedy.max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k
        )
        self.teacher = EMATeacher(self.student, teacher_rate)
        self.teacher_head = VocabularyHead.of(self.teacher.model)

    def on_train_start(self) -> None:
        """A stage's teacher starts from the student; a resumed stage keeps its own."""
        if self.reset_teacher and self.at_stage_start():
            self.teacher.reset(self.student)

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """The paper's algorithm box."""
        rollout = self.sample(batch)  # on-policy, no gradient
        positions = LossPositions.of(rollout.completions, self.early_mask(rollout), self.device)
        teacher = self.score_teacher(batch, rollout, positions)  # demonstration in context
        student = self.score_student(batch, rollout, positions)  # prompt only
        loss = distillation_loss(
            student,
            self.student_head,
            teacher,
            self.teacher_head,
            tokens=positions.tokens,
            weights=reduction_weights(self.reduction, positions.rows, positions.num_sequences),
            divergence=self.divergence,
            sequence_index=positions.rows,
        ).loss
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        self._log_openings(batch, rollout)
        return loss

    def sample(self, batch: DemonstrationBatch) -> Rollout:
        """One completion per prompt from the student."""
        start = time.perf_counter()
        rollout = sample(
            self.student,
            batch.student_prompts,
            self.sampling,
            end_ids=self.end_ids,
            generator=self.rollout_generator(),
            drafts=batch.demonstrations,
        )
        self._log_rollout(rollout, time.perf_counter() - start)
        self.last_rollout = rollout
        return rollout

    def early_mask(self, rollout: Rollout) -> list[int]:
        """First tokens of each completion that carry no loss."""
        in_phrases = self.skipped_openings.num_tokens(rollout.completions)
        return [max(number, self.num_loss_tokens_to_skip) for number in in_phrases]

    @torch.no_grad()
    def score_teacher(
        self, batch: DemonstrationBatch, rollout: Rollout, positions: LossPositions
    ) -> Tensor:
        """(N, D) hidden states of the teacher, the demonstration in its context."""
        return completion_hidden_states(
            self.teacher.model, batch.teacher_prompts, rollout.completions, positions
        )

    def score_student(
        self, batch: DemonstrationBatch, rollout: Rollout, positions: LossPositions
    ) -> Tensor:
        """(N, D) hidden states of the student, with gradient."""
        return completion_hidden_states(
            self.student, batch.student_prompts, rollout.completions, positions
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the student, then let the teacher follow, once per optimizer step."""
        super().optimizer_step(*args, **kwargs)
        self.teacher.update(self.student)

    def _log_openings(self, batch: DemonstrationBatch, rollout: Rollout) -> None:
        """How often student and teacher begin with a watched phrase."""
        rate = self.watched_openings.rate(rollout.completions)
        self.log("train/opening_rate_student", rate, batch_size=len(batch))
        every = self.teacher_samples_every
        if every and self.trainer.global_step % every == 0:
            seed = mix_seed(
                self.seed, self.trainer.global_step, self.trainer.global_rank, TEACHER_STREAM
            )
            beginnings = sample(
                self.teacher.model,
                batch.teacher_prompts,
                replace(self.sampling, max_new_tokens=self.watched_openings.max_tokens),
                end_ids=self.end_ids,
                generator=torch.Generator(self.device).manual_seed(seed),
            )
            rate = self.watched_openings.rate(beginnings.completions)
            self.log("train/opening_rate_teacher", rate, batch_size=len(batch))

    def _log_rollout(self, rollout: Rollout, seconds: float) -> None:
        rows = len(rollout.completions)
        self.log("train/completion_length", rollout.num_tokens / rows, batch_size=rows)
        self.log("train/ended", sum(rollout.ended) / rows, batch_size=rows)
        self.log("train/tokens_per_s", rollout.num_tokens / seconds, prog_bar=True, batch_size=rows)
