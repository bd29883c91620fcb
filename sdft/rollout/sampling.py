"""Drawing tokens from logits, and cutting sampled answers where they end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.running_sum import running_sum
from sdft.types import Rollout, TokenIds


def draw(logits: Tensor, settings: SamplingSettings, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: (M, V) next-token logits.
        settings: Temperature and truncation.
        noise: (M,) numbers in [0, 1); each picks the first token of its row whose cumulative
            probability exceeds it. None when greedy.

    Returns:
        (M,) token ids and (M,) their log-probabilities under the truncated, renormalized
        distribution they were drawn from. Greedy tokens have log-probability 0.
    """
    logits = logits.float()
    if noise is None:
        return logits.argmax(-1), torch.zeros(len(logits), device=logits.device)
    logits = _truncate(logits / settings.temperature, settings)
    logits -= logits.amax(-1, keepdim=True)
    # Summed in float64, so that the smallest probabilities are not lost to rounding.
    cumulative = running_sum(logits.exp().double())
    total = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, noise.to(total)[:, None] * total, right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), logits.gather(1, tokens).squeeze(1) - total.squeeze(1).log().float()


def _truncate(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Mask tokens outside the top k, then outside the top-p nucleus, then below min-p: (M, V)."""
    if 0 < settings.top_k < logits.shape[-1]:
        threshold = logits.topk(settings.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays while the probability before it has not reached top_p.
        masked = running_sum(probabilities) - probabilities >= settings.top_p
        logits = logits.masked_fill(masked.scatter(1, order, masked), -torch.inf)
    if settings.min_p > 0:
        threshold = logits.amax(-1, keepdim=True) + math.log(settings.min_p)
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    return logits


def rollout_of(answers: Sequence[tuple[TokenIds, list[float]]], request: RolloutRequest) -> Rollout:
    """Make a rollout from tokens with log-probabilities, cutting each answer where it ends.

    Greedy tokens have log-probability 0, as in every engine.
    """
    cuts = [request.ending.cut(tokens) for tokens, _ in answers]
    greedy = request.settings.temperature == 0
    return Rollout(
        completions=[tokens for tokens, _ in cuts],
        logprobs=[
            [0.0] * len(tokens) if greedy else logprobs[: len(tokens)]
            for (tokens, _), (_, logprobs) in zip(cuts, answers, strict=True)
        ],
        ended=[ended for _, ended in cuts],
    )
