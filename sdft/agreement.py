"""How far a model that was shown a demonstration agrees with it.

A demonstration that contradicts its prompt, or that nothing in the context makes plausible, stays
unlikely even to a model that has just read it; one row of SDFT learns nothing good from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from sdft.head import VocabularyHead
from sdft.objective import token_logprobs
from sdft.rollout import evaluation_mode
from sdft.scoring import LossPositions, completion_hidden_states
from sdft.types import TokenIds


@torch.no_grad()
def agreement(
    model: PreTrainedModel, prompts: Sequence[TokenIds], demonstrations: Sequence[TokenIds]
) -> list[float]:
    """Geometric mean probability of each demonstration's tokens, from 0 to 1.

    Args:
        model: Reads the prompts.
        prompts: B token-id lists, with the demonstration in context.
        demonstrations: B token-id lists of at least one token.
    """
    positions = LossPositions.of(demonstrations, device=model.device)
    with evaluation_mode(model):
        hidden = completion_hidden_states(model, prompts, demonstrations, positions)
        logprobs = token_logprobs(hidden, VocabularyHead.of(model), positions.tokens)
    means = torch.zeros(len(prompts), device=model.device, dtype=logprobs.dtype)
    lengths = positions.rows.bincount(minlength=len(prompts))
    means.index_add_(0, positions.rows, logprobs).div_(lengths)
    found: list[float] = means.exp().tolist()
    return found
