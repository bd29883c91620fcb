"""Weights of the loss tokens: the reduction, and the correction for another sampler.

The loss of an optimizer step is the sum over its loss tokens of weight * divergence. The weights
define the reduction, so a step gives the same gradient however it is split.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["token_mean", "sequence_mean"]
REDUCTIONS = get_args(Reduction)


def reduction_weights(
    name: str,
    sequence_index: Tensor,
    num_sequences: int,
    *,
    num_tokens: int | None = None,
    averaged_over: int = 1,
) -> Tensor:
    """Weight of each position, such that the loss is the sum of weight * value.

    If the totals are those of the whole optimizer step, over all micro-batches and ranks, the sum
    of the parts' losses, and of their gradients, does not depend on how the step is split.

    - "token_mean" divides by ``num_tokens``: every loss token has the same weight.
    - "sequence_mean" divides by the number of loss tokens of the position's own sequence, then by
      ``num_sequences``: every sequence has the same weight. A sequence without loss tokens counts
      as one whose mean is 0.

    Args:
        name: One of :data:`REDUCTIONS`.
        sequence_index: (N,), from 0: the sequence each position of this micro-batch belongs to.
            A sequence is never split between micro-batches.
        num_sequences: Sequences of the optimizer step, including those without loss tokens.
        num_tokens: Loss tokens of the optimizer step; None if they are the N given here. If the
            total is only known after the last micro-batch, pass 1 and divide the gradients by the
            total before the optimizer steps.
        averaged_over: Number by which the gradient is divided afterwards: the number of ranks under
            DDP and FSDP, times the number of micro-batches if the trainer divides by it.

    Returns:
        (N,), float32.

    Raises:
        ValueError: The name is unknown, or a total is not positive.
    """
    if name not in REDUCTIONS:
        raise ValueError(f"unknown reduction {name!r}; valid: {', '.join(REDUCTIONS)}")
    count = sequence_index.shape[0]
    if num_tokens is None:
        num_tokens = max(count, 1)
    if num_tokens < 1 or num_sequences < 1:
        raise ValueError(
            f"num_tokens is {num_tokens} and num_sequences is {num_sequences}; both are totals of "
            "an optimizer step and at least 1"
        )
    if name == "token_mean":
        return torch.full((count,), averaged_over / num_tokens, device=sequence_index.device)
    lengths = sequence_index.bincount()[sequence_index].float()
    return averaged_over / (lengths * num_sequences)


def importance_weights(trainer_logprobs: Tensor, sampler_logprobs: Tensor, clip: float) -> Tensor:
    """Weights min(p_trainer / p_sampler, clip) of tokens that another engine has sampled.

    Multiply the reduction's weights by them. They are constants, without gradient.

    Args:
        trainer_logprobs: (N,) log-probabilities, in nats, of the sampled tokens under the trained
            student.
        sampler_logprobs: (N,) log-probabilities of the same tokens as the sampling engine reported
            them, at the same temperature and without truncation to a nucleus.
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
    """Kish's effective sample size, (sum w)^2 / sum w^2.

    Args:
        weights: (N,), non-negative.

    Returns:
        Between 1 and N; 0 if there are no tokens or all weights are 0.
    """
    total_of_squares = float(weights.double().square().sum())
    if total_of_squares == 0.0:
        return 0.0
    return float(weights.double().sum()) ** 2 / total_of_squares
