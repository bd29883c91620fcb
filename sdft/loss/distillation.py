"""Losses from final hidden states to a scalar, without logits of size (N, V).

Pass only the positions that carry loss: every row given here is projected to the vocabulary, one
tile at a time (:mod:`sdft.loss.tiling`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdft.loss.divergences import Divergence
from sdft.loss.partial_divergences import CrossEntropy
from sdft.loss.tiling import TiledLoss
from sdft.model.head import VocabularyHead


@dataclass(frozen=True, eq=False)
class DistillationLoss:
    """A loss and its value at each position.

    Args:
        loss: (), the sum of weight * value, with its gradient; for one backward pass.
        values: (N,), the divergence at each position in nats, without gradient.
    """

    loss: Tensor
    values: Tensor


def distillation_loss(
    student_hidden: Tensor,
    student_head: VocabularyHead,
    teacher_hidden: Tensor,
    teacher_head: VocabularyHead,
    *,
    tokens: Tensor,
    weights: Tensor,
    divergence: Divergence,
    temperature: float = 1.0,
    sequence_index: Tensor | None = None,
    tile_rows: int | None = None,
    tile_dtype: torch.dtype | None = None,
) -> DistillationLoss:
    """Sum over positions of weight * divergence(student, teacher).

    Under autocast the projections run in autocast's type and the divergence in float32.

    Args:
        student_hidden: (N, D), final hidden states at the positions that carry loss. If N is 0,
            the loss is a zero attached to the graph.
        student_head: The student's head; its parameters receive gradients if they require them.
        teacher_hidden: (N, D'), the teacher's hidden states at the same positions; a constant.
        teacher_head: The teacher's head, with the same vocabulary; a constant.
        tokens: (N,), the sampled token at each position.
        weights: (N,), from :func:`sdft.loss.reductions.reduction_weights`; a constant.
        divergence: From :func:`sdft.loss.divergence_registry.make_divergence`.
        temperature: Divides both models' logits. The value is not multiplied by its square, so
            gradients shrink as it grows.
        sequence_index: (N,), which sequence each row belongs to; only used by divergences with a
            prefix score. For these, rows must be grouped by sequence and ordered by position, and
            must include masked positions, whose tokens' scores count even though their weight is 0.
        tile_rows: Most rows per tile; None chooses by vocabulary and device.
        tile_dtype: Type of the tiles' products; None is the device's.

    Raises:
        ValueError: Shapes or vocabularies do not match, the temperature is not positive, or
            ``sequence_index`` is missing or does not keep the rows of a sequence together.
    """
    _check_pair(student_hidden, student_head, teacher_hidden, teacher_head)
    ends = None
    if divergence.prefix_score:
        ends = _sequence_ends(divergence, sequence_index, len(student_hidden))
    loss, values = TiledLoss(
        divergence,
        tokens,
        weights,
        student_head,
        teacher_hidden.detach(),
        teacher_head,
        temperature=temperature,
        sequence_ends=ends,
        tile_rows=tile_rows,
        tile_dtype=tile_dtype,
    )(student_hidden)
    return DistillationLoss(loss, values)


def cross_entropy_loss(
    hidden: Tensor, head: VocabularyHead, tokens: Tensor, weights: Tensor
) -> Tensor:
    """Sum over positions of weight * -log p(token): supervised fine-tuning's loss.

    Args:
        hidden: (N, D), final hidden states at the positions that carry loss.
        head: The model's head; its parameters receive gradients if they require them.
        tokens: (N,), the target at each position.
        weights: (N,), from :func:`sdft.loss.reductions.reduction_weights`; a constant.

    Returns:
        (), attached to the graph; for one backward pass.

    Raises:
        ValueError: Shapes do not match.
    """
    return TiledLoss(CrossEntropy(), tokens, weights, head)(hidden)[0]


@torch.no_grad()
def token_logprobs(
    hidden: Tensor, head: VocabularyHead, tokens: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities of given tokens, without gradient: (N,), in nats.

    ``importance_weights`` compares them with the sampler's.

    Args:
        hidden: (N, D), final hidden states at the positions that predict the tokens.
        head: Head of the model that computed ``hidden``.
        tokens: (N,).
        temperature: Divides the logits; pass the sampler's to compare with its log-probabilities.

    Raises:
        ValueError: Shapes do not match, or the temperature is not positive.
    """
    unused = torch.zeros(len(hidden), device=hidden.device)
    return -TiledLoss(CrossEntropy(), tokens, unused, head, temperature=temperature)(hidden)[1]


def _check_pair(
    student_hidden: Tensor,
    student_head: VocabularyHead,
    teacher_hidden: Tensor,
    teacher_head: VocabularyHead,
) -> None:
    if teacher_hidden.shape[0] != student_hidden.shape[0]:
        raise ValueError(
            f"student_hidden has {student_hidden.shape[0]} rows, teacher_hidden "
            f"{teacher_hidden.shape[0]}: both must hold the same positions"
        )
    if teacher_head.vocab_size != student_head.vocab_size:
        raise ValueError(
            f"the student's vocabulary has {student_head.vocab_size} entries, the teacher's "
            f"{teacher_head.vocab_size}: distillation compares them entry by entry"
        )


def _sequence_ends(divergence: Divergence, sequence_index: Tensor | None, count: int) -> Tensor:
    """For each row, the index of the first row after its sequence: (N,)."""
    if sequence_index is None or sequence_index.shape != (count,):
        raise ValueError(
            f"{type(divergence).__name__} needs sequence_index with shape ({count},): the "
            "sequence each row belongs to"
        )
    runs: Tensor
    runs, run_of_row, lengths = torch.unique_consecutive(
        sequence_index, return_inverse=True, return_counts=True
    )
    if len(set(runs.tolist())) != runs.numel():
        raise ValueError("sequence_index returns to a sequence it left; sort the rows by sequence")
    ends: Tensor = lengths.cumsum(0)[run_of_row]
    return ends
