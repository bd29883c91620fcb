"""SDFT: the student learns from the demonstration-conditioned model (section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_modules.base import ContinualModule
from lightning_modules.options import (
    NEED_OWN_DRAWS,
    check_fraction,
    check_reduction,
    check_teacher,
    checked_divergence,
    require_above,
    require_at_least,
)
from sdft.loss.distillation import distillation_loss, token_logprobs
from sdft.loss.divergence_registry import DivergenceName
from sdft.loss.hidden_states import LossPositions
from sdft.loss.preambles import Preambles
from sdft.loss.reductions import Reduction, effective_sample_size, importance_weights
from sdft.model.lora import digest
from sdft.model.teacher import make_teacher
from sdft.model.teacher_options import TeacherOptions
from sdft.rollout.request import SamplingSettings
from sdft.rollout.sampling import beside_demonstrations, on_policy_rows
from sdft.types import DemonstrationBatch, Rollout, TokenIds

EMA_TEACHER: TeacherOptions = {"kind": "ema"}


class SDFTModule(ContinualModule):
    """Self-Distillation Fine-Tuning.

    Per optimizer step: the student samples a completion per prompt; the teacher, by default an
    exponential moving average (EMA) of the student, reads the same prompt with the demonstration
    in context and scores the student's tokens; the loss is the divergence between the two
    next-token distributions at every completion token; the EMA is updated.

    Args:
        divergence: What is minimised: forward_kl is KL(teacher || student), as in all published
            results; reverse_kl is KL(student || teacher), as in the paper's equation 1; jsd is
            a mixture of both; sampled_token looks at the drawn token alone; rao_blackwellised is
            reverse_kl plus the score of the tokens before; topk_teacher and topk_student look at
            the k most likely tokens of either model.
        divergence_options: Options of that divergence, such as {beta: 0.5}. All but
            sampled_token: clip, an upper bound of each vocabulary entry's term in nats, off by
            default. jsd: beta, the teacher's weight in the mixture, from 0 (forward_kl) to 1
            (reverse_kl). topk_teacher and topk_student: k, the number of tokens; tail, whether
            one more entry holds the probability of all others or the k are renormalised;
            direction, one of forward, reverse and jsd; beta, for jsd.
        distillation_temperature: Divides both models' logits in the divergence.
        reduction: What the loss averages over: sequence_mean (tokens of a completion, then
            completions; the paper's code) or token_mean (all completion tokens of the batch).
        num_masked_tokens: Number of first completion tokens without loss, so that the student does
            not pick up preambles such as "Based on the text" (the paper: 3). Under
            rao_blackwellised they still pass the score of what follows them.
        masked_preambles: A completion that begins with one of these phrases carries no
            loss up to the phrase's end, whatever its case; the longer of the two masks holds.
        teacher: Which weights teach. kind: ema, an EMA of the student (the paper's choice);
            stage_start, the student as the stage began; base, the model before any training;
            student, the live student; model, the one that pretrained names. Of ema: rate, the
            student's weight in each update (0.01); update_every, optimizer steps
            between two updates (1); reset_each_stage, start every stage from the student (true).
            A mapping in a config replaces the one before it; a flag such as
            --model.teacher.rate 0.02 changes one entry.
        temperature: Sampling temperature of the rollouts.
        top_p: Nucleus probability of the rollouts; 1 samples the student's own distribution.
        top_k: Rollout tokens come from the k most likely; 0 for all.
        min_p: Rollout tokens have at least this fraction of the most likely token's probability;
            0 for all.
        on_policy_fraction: Fraction of the rows whose scored completion is the student's own sample
            (λ of Agarwal et al. 2024); the others' is the demonstration. 1 is SDFT as published.
        importance_clip: Weight each loss token by min(p_student / p_sampler, this), for a sampler
            that is another engine than the trainer; null is off. It costs one more
            projection. Logged: train/importance_mean, and train/importance_ess, the effective
            sample size as a fraction of the loss tokens.
        base: Options every method has.
    """

    method_name = "SDFT"
    may_score_demonstrations = True  # whether on_policy_fraction may be below 1

    reads_teacher_prompts = True

    def __init__(
        self,
        *,
        divergence: DivergenceName = "forward_kl",
        divergence_options: dict[str, Any] | None = None,
        distillation_temperature: float = 1.0,
        reduction: Reduction = "sequence_mean",
        num_masked_tokens: int = 0,
        masked_preambles: list[str] | None = None,
        teacher: TeacherOptions = EMA_TEACHER,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        on_policy_fraction: float = 1.0,
        importance_clip: float | None = None,
        **base: Any,
    ) -> None:
        require_at_least(0, num_masked_tokens=num_masked_tokens)
        require_above(0, distillation_temperature=distillation_temperature)
        check_reduction(reduction)
        drawn = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
        objective = checked_divergence(
            divergence, divergence_options or {}, SamplingSettings(1, **drawn), importance_clip
        )
        only_own = not self.may_score_demonstrations or divergence in NEED_OWN_DRAWS
        check_fraction(on_policy_fraction, own_draws_only=only_own or importance_clip is not None)
        check_teacher(teacher)
        super().__init__(**base)  # loads the model
        self.divergence, self.reduction = objective, reduction
        self.distillation_temperature = distillation_temperature
        self.preambles_to_mask = Preambles(masked_preambles or [], self.tokenizer)
        self.sampling = replace(self.greedy, **drawn)
        self.num_masked_tokens, self.importance_clip = num_masked_tokens, importance_clip
        self.on_policy_fraction = on_policy_fraction
        if on_policy_fraction < 1.0:
            self.method_name = f"{self.method_name}, λ = {on_policy_fraction:g}"
        self.teacher = make_teacher(self.student, teacher, self.tokenizer)
        self.teacher_head = self.teacher.head(self.student_head)

    def on_train_start(self) -> None:
        """Start the stage's teacher from the student; a resumed stage keeps its own."""
        super().on_train_start()
        if self.at_stage_start():
            self.teacher.start_stage(self.student)
            self.clock.lap("teacher_update")

    def fixed_settings(self) -> dict[str, str]:
        """Values that a resumed run must share with its checkpoint, by the option's name."""
        own = {"teacher.kind": self.teacher.kind}
        if self.teacher.kind == "model":
            own["teacher.pretrained"] = f"of weights {self._teacher_digest}"
        return {**own, **super().fixed_settings()}

    @cached_property
    def _teacher_digest(self) -> str:
        return digest(self.teacher.left_out())

    def _backbone(self) -> dict[str, Tensor]:
        others = {f"teacher.{name}": each for name, each in self.teacher.left_out().items()}
        return {**super()._backbone(), **others}

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> Tensor:
        """One SDFT step: sample, score with teacher and student, return the masked divergence."""
        rollout = self.sample(batch)  # on-policy, no gradient
        positions = self.loss_positions(rollout)
        teacher = self.score_teacher(batch, rollout, positions)  # demonstration in context
        student = self.score_student(batch, rollout, positions)  # prompt only
        return self.loss(batch, rollout, positions, student, teacher)

    def loss(
        self,
        batch: DemonstrationBatch,
        rollout: Rollout,
        positions: LossPositions,
        student: Tensor,
        teacher: Tensor,
    ) -> Tensor:
        """The weighted objective: weights of the reduction, times importance weights if asked for.

        Args:
            batch: The prompts.
            rollout: The student's completions.
            positions: The N completion tokens that the objective reads.
            student: (N, D) hidden states, with gradient.
            teacher: (N, D') hidden states.
        """
        weights = self.token_weights(positions)
        if self.importance_clip is not None:
            weights = weights * self.importance(rollout, positions, student)
        loss = self.objective(batch, rollout, positions, weights, student, teacher)
        self.clock.lap("student")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch), sync_dist=True)
        return self.anchored(loss)

    def objective(
        self,
        batch: DemonstrationBatch,
        rollout: Rollout,
        positions: LossPositions,
        weights: Tensor,
        student: Tensor,
        teacher: Tensor,
    ) -> Tensor:
        """The sum of weight * divergence over the tokens; arguments as in :meth:`loss`."""
        return distillation_loss(
            student,
            self.student_head,
            teacher,
            self.teacher_head,
            tokens=positions.tokens,
            weights=weights,
            divergence=self.divergence,
            temperature=self.distillation_temperature,
            sequence_index=positions.rows,
        ).loss

    def sample(self, batch: DemonstrationBatch) -> Rollout:
        """One completion per prompt: the student's sample, or an off-policy row's demonstration."""
        rows = self.on_policy_rows(len(batch))
        with self.prepared() if self.on_policy_fraction else nullcontext():  # on every rank
            drawn = self._draw(batch, rows) if rows else None
        self.last_rollout = rollout = beside_demonstrations(drawn, rows, batch.demonstrations)
        return rollout

    def on_policy_rows(self, num_rows: int) -> list[int]:
        """Rows of this rank's batch to sample for: a fraction λ of all rows of the run."""
        if self.on_policy_fraction == 1:
            return list(range(num_rows))
        ranks, step = self.trainer.world_size, self.trainer.global_step
        place = step * num_rows * ranks + self.trainer.global_rank  # of the first row
        places = range(place, place + num_rows * ranks, ranks)
        return on_policy_rows(self.on_policy_fraction, places)

    def _draw(self, batch: DemonstrationBatch, rows: list[int]) -> Rollout:
        seeds = self.rollout_seeds(len(batch))
        prompts = [batch.student_prompts[row] for row in rows]
        drawn = self.generate(
            prompts,
            self.sampling,
            seeds=[seeds[row] for row in rows],
            drafts=[batch.demonstrations[row] for row in rows],
        )
        self.passes.sampled(self.student, prompts, drawn.completions)
        self.clock.lap("sample")
        self._log_rollout(drawn)
        return drawn

    def early_mask(self, rollout: Rollout) -> list[int]:
        """Number of first tokens of each completion that carry no loss."""
        in_phrases = self.preambles_to_mask.num_tokens(rollout.completions)
        return [max(number, self.num_masked_tokens) for number in in_phrases]

    @torch.no_grad()
    def score_teacher(
        self, batch: DemonstrationBatch, rollout: Rollout, positions: LossPositions
    ) -> Tensor:
        """(N, D) hidden states of the teacher, with the demonstration in context."""
        prompts = self.read_by_teacher(batch)
        with self.teacher.scoring(self.student) as model:
            hidden = self.scored("teacher", model, prompts, rollout.completions, positions)
        self.clock.lap("teacher")
        return hidden

    def read_by_teacher(self, batch: DemonstrationBatch) -> Sequence[TokenIds]:
        """B prompts: with the demonstration in context."""
        return batch.teacher_prompts

    def score_student(
        self, batch: DemonstrationBatch, rollout: Rollout, positions: LossPositions
    ) -> Tensor:
        """(N, D) hidden states of the student, with gradient."""
        read = batch.student_prompts, rollout.completions
        return self.scored("student", self.student, *read, positions)

    def loss_positions(self, rollout: Rollout) -> LossPositions:
        """The N positions the loss reads; a prefix score also reads those of masked tokens."""
        return LossPositions.of(
            rollout.completions,
            self.early_mask(rollout),
            self.device,
            keep_masked=self.divergence.prefix_score,
        )

    def importance(self, rollout: Rollout, positions: LossPositions, student: Tensor) -> Tensor:
        """(N,) clipped ratios of the student's to the sampler's probability of each token."""
        self.passes.projected("student", self.student, len(positions), gradient=False)
        drawn_at = {"temperature": self.sampling.temperature}
        own = token_logprobs(student, self.student_head, positions.tokens, **drawn_at)
        sampler = positions.gather(rollout.logprobs)
        ratios = importance_weights(own, sampler, self.importance_clip)
        if num := len(ratios):
            self.log("train/importance_ess", effective_sample_size(ratios) / num, batch_size=num)
            self.log("train/importance_mean", ratios.mean(), batch_size=num)
        return ratios

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the student, then update the teacher."""
        super().optimizer_step(*args, **kwargs)
        if not self.step_skipped:
            self.teacher.update(self.student, self.trainer.global_step + 1, self.seed)
        self.clock.lap("teacher_update")

    def _log_rollout(self, rollout: Rollout) -> None:
        rows, seconds = len(rollout.completions), self.clock.seconds["sample"]
        self.log("train/completion_length", rollout.num_tokens / rows, batch_size=rows)
        self.log("train/ended", sum(rollout.ended) / rows, batch_size=rows)
        self.log("train/tokens_per_s", rollout.num_tokens / seconds, prog_bar=True, batch_size=rows)
