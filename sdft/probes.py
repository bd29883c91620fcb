"""What two models believe along the same completions: divergence and entropy per token.

For measurements beside training. The models' hidden states are projected a tile of rows at a
time, so no logits of all positions are ever held.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdft.head import VocabularyHead
from sdft.losses import make_divergence
from sdft.tiling import default_tile_rows


@torch.no_grad()
def kl_and_entropy(
    hidden: Tensor, head: VocabularyHead, other_hidden: Tensor, other_head: VocabularyHead
) -> tuple[Tensor, Tensor]:
    """KL(model || other) and the model's entropy at each position, in nats.

    Args:
        hidden: (N, D), the model's final hidden states.
        head: Turns them into logits.
        other_hidden: (N, D'), the other model's at the same positions.
        other_head: Goes with ``other_hidden``.

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
