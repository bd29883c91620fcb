"""Drawing tokens from logits, cutting sampled answers where they end, and mixed batches.

In a mixed batch a share of the completions is the student's own and the rest is the
demonstrations. Generalised knowledge distillation calls the share λ (Agarwal et al. 2024, arXiv
2306.13649, algorithm 1). There every batch is one or the other, at random; here the rows of every
batch are divided, so that the share is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.running_sum import running_sum
from sdft.types import Rollout, TokenIds

_ROUNDING = 1e-9  # tolerance for the product of the fraction and a number of rows


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


def on_policy_rows(fraction: float, places: Iterable[int]) -> list[int]:
    """Choose the rows to sample, evenly spread: floor(fraction * n) of the first n rows of a run.

    Args:
        fraction: λ, from 0 to 1.
        places: For each row of a batch, its index in the run, counted over all steps and ranks.

    Returns:
        Indices into ``places``, in order.
    """

    def num_before(place: int) -> int:
        return math.floor(fraction * place + _ROUNDING)

    return [row for row, place in enumerate(places) if num_before(place + 1) > num_before(place)]


def beside_demonstrations(
    sampled: Rollout | None, rows: Sequence[int], demonstrations: Sequence[TokenIds]
) -> Rollout:
    """The completions of a batch: the samples for sampled rows, demonstrations for the others.

    Args:
        sampled: One completion for each of ``rows``; None if there are none.
        rows: The rows that were sampled.
        demonstrations: B token-id lists.

    Returns:
        B completions; those that were not sampled have no log-probabilities.
    """
    completions = [list(demonstration) for demonstration in demonstrations]
    logprobs: list[list[float]] = [[] for _ in completions]
    ended = [True] * len(completions)
    for place, row in enumerate(rows):
        assert sampled is not None
        completions[row] = list(sampled.completions[place])
        logprobs[row] = sampled.logprobs[place]
        ended[row] = sampled.ended[place]
    return Rollout(completions, logprobs, ended)
