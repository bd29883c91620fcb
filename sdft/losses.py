"""The choices of a loss by name: its divergence, its reduction, its correction of the sampler.

The loss of an optimizer step is the sum over its loss tokens of weight * divergence. The
weights carry the reduction, so a step gives the same gradient however it is split.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from sdft.divergences import (
    Divergence,
    ForwardKL,
    JensenShannon,
    RaoBlackwellised,
    ReverseKL,
)
from sdft.partial_divergences import SampledToken, TopKStudent, TopKTeacher

DIVERGENCES: dict[str, type[Divergence]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": JensenShannon,
    "sampled_token": SampledToken,
    "rao_blackwellised": RaoBlackwellised,
    "topk_teacher": TopKTeacher,
    "topk_student": TopKStudent,
}
REDUCTIONS = ("token_mean", "sequence_mean")


def make_divergence(name: str, **options: Any) -> Divergence:
    """The divergence of that name.

    Args:
        name: A key of :data:`DIVERGENCES`.
        options: Fields of that divergence, such as ``beta`` of "jsd".

    Raises:
        ValueError: Unknown name or option, or an option out of its range.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"unknown divergence {name!r}; valid: {', '.join(DIVERGENCES)}")
    kind = DIVERGENCES[name]
    valid = [field.name for field in fields(kind)]
    for option in options:
        if option not in valid:
            listed = ", ".join(valid) or "none"
            raise ValueError(f"divergence {name!r} has no option {option!r}; its options: {listed}")
    return kind(**options)


def reduction_weights(
    name: str,
    sequence_index: Tensor,
    *,
    num_tokens: int,
    num_sequences: int,
    averaged_over: int = 1,
) -> Tensor:
    """Weight of each position, such that the loss is the sum of weight * value.

    Both denominators are those of the whole optimizer step, over all its micro-batches and
    ranks, so the sum of the parts' losses, and of their gradients, does not depend on the split.

    - "token_mean" normalises by ``num_tokens``: every loss token counts the same.
    - "sequence_mean" normalises by the loss tokens of the position's own sequence, then by
      ``num_sequences``: every sequence counts the same. A sequence without loss tokens counts
      as one whose mean is 0.

    Args:
        name: One of :data:`REDUCTIONS`.
        sequence_index: (N,), which sequence each position of this micro-batch belongs to, from
            0. A sequence is never split between micro-batches.
        num_tokens: Loss tokens of the optimizer step.
        num_sequences: Sequences of the optimizer step, with those that have no loss token.
        averaged_over: By how much the gradient is divided afterwards: the number of ranks under
            DDP and FSDP, times the number of micro-batches where the trainer divides by it.

    Returns:
        (N,), float32.

    Raises:
        ValueError: Unknown name, or a total smaller than what this micro-batch alone holds.
    """
    if name not in REDUCTIONS:
        raise ValueError(f"unknown reduction {name!r}; valid: {', '.join(REDUCTIONS)}")
    count = sequence_index.shape[0]
    if count > num_tokens:
        raise ValueError(
            f"num_tokens is {num_tokens}, but this micro-batch alone has {count} loss tokens; "
            "pass the total of the optimizer step over micro-batches and ranks"
        )
    if name == "token_mean":
        weight = averaged_over / max(num_tokens, 1)
        return torch.full((count,), weight, device=sequence_index.device)
    lengths = sequence_index.bincount()
    if int(lengths.count_nonzero()) > num_sequences:
        raise ValueError(
            f"num_sequences is {num_sequences}, but this micro-batch alone has "
            f"{int(lengths.count_nonzero())}; pass the total of the optimizer step"
        )
    return averaged_over / (lengths[sequence_index].float() * num_sequences)


def importance_weights(trainer_logprobs: Tensor, sampler_logprobs: Tensor, clip: float) -> Tensor:
    """Per-token weights min(p_trainer / p_sampler, clip), for a sampler that is another engine.

    Multiply them into the reduction's weights. They are constants: no gradient flows through.

    Args:
        trainer_logprobs: (N,) log-probabilities, in nats, of the sampled tokens under the student
            that is trained.
        sampler_logprobs: (N,) the same as the sampling engine reported them, at the same
            temperature and before any truncation.
        clip: Upper bound of a weight, at least 1.

    Returns:
        (N,), float32, without gradient.

    Raises:
        ValueError: ``clip`` is below 1, or the shapes differ.
    """
    if not 1.0 <= clip < math.inf:
        raise ValueError(f"clip is {clip!r}; a bound on importance weights must be at least 1")
    if trainer_logprobs.shape != sampler_logprobs.shape:
        raise ValueError(
            f"trainer_logprobs has shape {tuple(trainer_logprobs.shape)}, sampler_logprobs "
            f"{tuple(sampler_logprobs.shape)}: both need one entry per sampled token"
        )
    difference = trainer_logprobs.detach().float() - sampler_logprobs.detach().float()
    return difference.clamp(max=math.log(clip)).exp()


def effective_sample_size(weights: Tensor) -> float:
    """Kish's (sum w)^2 / sum w^2: how many equally weighted tokens the weights are worth.

    Args:
        weights: (N,), non-negative.

    Returns:
        Between 1 and N; 0 when there are no tokens or all weights are 0.
    """
    total_of_squares = float(weights.double().square().sum())
    if total_of_squares == 0.0:
        return 0.0
    return float(weights.double().sum()) ** 2 / total_of_squares
