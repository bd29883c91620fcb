"""SDFT: the model learns from itself, shown a demonstration (section 3)."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from lightning_modules.base import ContinualModule, require
from sdft.losses import REDUCTIONS, make_divergence, reduction_weights
from sdft.objective import distillation_loss
from sdft.rollout import SamplingSettings
from sdft.scoring import LossPositions
from sdft.teacher import make_teacher
from sdft.types import DemonstrationBatch, Rollout


class SDFTModule(ContinualModule):
    """Self-Distillation Fine-Tuning.

    Per optimizer step: the student samples a completion per prompt; the teacher, by default a
    slow copy of the student, reads the same prompt with the demonstration in context and scores
    the student's tokens; the loss is the divergence between the two next-token distributions at
    every completion token; the teacher follows the student.

    Args:
        divergence: What is minimised: forward_kl is KL(teacher || student), as all published
            results used; reverse_kl is KL(student || teacher), as the paper's equation 1.
        reduction: What the loss averages over: sequence_mean (tokens of a completion, then
            completions; the paper's code) or token_mean (all completion tokens of the batch).
        num_loss_tokens_to_skip: First completion tokens without loss, so that the student does
            not pick up openings such as "Based on the text" (the paper: 3).
        teacher: Whose weights teach: ema, an average that follows the student (the paper's
            choice); stage_start, the student as the stage began; base, the model before any
            training; student, the live student.
        teacher_rate: For ema: share of the student taken over per update; null for 0.01.
        teacher_update_every: For ema: optimizer steps between two updates; null for 1.
        reset_teacher: For ema: start every stage's average from the student; off, it goes on
            across stages; null for on, the paper's choice.
        temperature: Sampling temperature of the rollouts.
        top_p: Nucleus of the rollouts; 1 samples the student's own distribution.
        top_k: Rollout tokens come from the k most likely; 0 for all.
        min_p: Rollout tokens have at least this share of the most likely one's probability; 0 for
            all.
        base: Options every method has.
    """

    method_name = "SDFT"

    def __init__(
        self,
        *,
        divergence: str = "forward_kl",
        reduction: str = "sequence_mean",
        num_loss_tokens_to_skip: int = 0,
        teacher: str = "ema",
        teacher_rate: float | None = None,
        teacher_update_every: int | None = None,
        reset_teacher: bool | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require(
            num_loss_tokens_to_skip >= 0,
            "num_loss_tokens_to_skip",
            num_loss_tokens_to_skip,
            "0 or more",
        )
        require(reduction in REDUCTIONS, "reduction", reduction, " or ".join(REDUCTIONS))
        self.divergence = make_divergence(divergence)
        require(
            not (self.divergence.prefix_score and (num_loss_tokens_to_skip or temperature != 1.0)),
            "divergence",
            divergence,
            "used with num_loss_tokens_to_skip 0 and temperature 1: its prefix score needs both",
        )
        self.reduction = reduction
        self.num_loss_tokens_to_skip = num_loss_tokens_to_skip
        self.sampling = SamplingSettings(
            self.greedy.max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            stop_strings=self.greedy.stop_strings,
        )
        self.teacher = make_teacher(
            self.student,
            teacher,
            teacher_rate=teacher_rate,
            teacher_update_every=teacher_update_every,
            reset_teacher=reset_teacher,
        )
        self.teacher_head = self.teacher.head(self.student_head)

    def on_train_start(self) -> None:
        """A stage's teacher starts from the student; a resumed stage keeps its own."""
        if self.at_stage_start():
            self.teacher.start_stage(self.student)

    def fixed_settings(self) -> dict[str, str]:
        """What a resumed run must share with its checkpoint, by the option's name."""
        return {"teacher": self.teacher.kind, **super().fixed_settings()}

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """The paper's algorithm box."""
        rollout = self.sample(batch)  # on-policy, no gradient
        positions = LossPositions.of(rollout.completions, self.num_loss_tokens_to_skip, self.device)
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
        return loss

    def sample(self, batch: DemonstrationBatch) -> Rollout:
        """One completion per prompt from the student."""
        start = time.perf_counter()
        rollout = self.rollout_engine(
            self.student,
            batch.student_prompts,
            self.sampling,
            end_ids=self.end_ids,
            generator=self.rollout_generator(),
            drafts=batch.demonstrations,
            decode=self.tokenizer.decode,
        )
        self._log_rollout(rollout, time.perf_counter() - start)
        self.last_rollout = rollout
        return rollout

    @torch.no_grad()
    def score_teacher(
        self, batch: DemonstrationBatch, rollout: Rollout, positions: LossPositions
    ) -> Tensor:
        """(N, D) hidden states of the teacher, the demonstration in its context."""
        with self.teacher.scoring(self.student) as model:
            return self.hidden_states(model, batch.teacher_prompts, rollout.completions, positions)

    def score_student(
        self, batch: DemonstrationBatch, rollout: Rollout, positions: LossPositions
    ) -> Tensor:
        """(N, D) hidden states of the student, with gradient."""
        return self.hidden_states(
            self.student, batch.student_prompts, rollout.completions, positions
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the student, then let the teacher follow."""
        super().optimizer_step(*args, **kwargs)
        self.teacher.follow(self.student, self.trainer.global_step + 1)

    def _log_rollout(self, rollout: Rollout, seconds: float) -> None:
        rows = len(rollout.completions)
        self.log("train/completion_length", rollout.num_tokens / rows, batch_size=rows)
        self.log("train/ended", sum(rollout.ended) / rows, batch_size=rows)
        self.log("train/tokens_per_s", rollout.num_tokens / seconds, prog_bar=True, batch_size=rows)
