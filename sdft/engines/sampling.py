"""What engines with a sampler of their own share: seeds for it, and reading its answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sdft.rollout import RolloutRequest
from sdft.types import Rollout, TokenIds


def draw_seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """Seeds for a sampler elsewhere, drawn from the rollout's own noise; 0 when greedy."""
    if generator is None:
        return [0] * count
    seeds: list[int] = torch.randint(
        2**31, (count,), generator=generator, device=generator.device
    ).tolist()
    return seeds


def rollout_of(answers: Sequence[tuple[TokenIds, list[float]]], request: RolloutRequest) -> Rollout:
    """Cut every answer, tokens with log-probabilities, where it ends.

    As everywhere, greedy tokens have log-probability 0.
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
