"""What engines with a sampler of their own share: reading its answers."""

from __future__ import annotations

from collections.abc import Sequence

from sdft.rollout import RolloutRequest
from sdft.types import Rollout, TokenIds


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
