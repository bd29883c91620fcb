"""Compare models on the same completions: divergence, entropy and agreement per token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sdft.loss.distillation import token_logprobs
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.loss.tiling import default_tile_rows
from sdft.model.head import VocabularyHead
from sdft.model.modes import evaluation_mode
from sdft.types import TokenIds


@torch.no_grad()
def kl_and_entropy(
    hidden: Tensor, head: VocabularyHead, other_hidden: Tensor, other_head: VocabularyHead
) -> tuple[Tensor, Tensor]:
    """KL(model || other) and the model's entropy at each position, in nats.

    Args:
        hidden: (N, D), the model's final hidden states.
        head: The model's head.
        other_hidden: (N, D'), the other model's final hidden states at the same positions.
        other_head: The other model's head.

    Returns:
        (N,) and (N,), float32.
    """
    kl_of = make_divergence("forward_kl")  # KL(teacher || student)
    rows = default_tile_rows(head.vocab_size, hidden.device)
    divergences, entropies = [], []
    for own, others in zip(torch.split(hidden, rows), torch.split(other_hidden, rows), strict=True):
        logits, other_logits = head.logits(own).float(), other_head.logits(others).float()
        unread = torch.zeros(len(own), dtype=torch.long, device=own.device)
        divergences.append(kl_of(student_logits=other_logits, teacher_logits=logits, tokens=unread))
        entropies.append(torch.special.entr(logits.softmax(-1)).sum(-1))
    return torch.cat(divergences), torch.cat(entropies)


@torch.no_grad()
def agreement(
    model: PreTrainedModel, prompts: Sequence[TokenIds], demonstrations: Sequence[TokenIds]
) -> list[float]:
    """Geometric mean probability of each demonstration's tokens, from 0 to 1.

    Args:
        model: Causal language model.
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
