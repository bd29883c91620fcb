"""Scoring a batch a few rows at a time, so that memory falls and nothing else changes.

Every part but the last drops its activations after its forward pass and makes them again in the
backward pass. What comes out are the hidden states of the whole batch: loss, reduction and
gradient need not know of the parts, and there is one backward pass, whose gradients ranks
exchange and clip once. The price is a second forward pass of the parts before the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sdft.scoring import LossPositions, completion_hidden_states
from sdft.types import TokenIds


def hidden_states_in_parts(
    model: PreTrainedModel,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    positions: LossPositions,
    num_rows: int | None,
) -> Tensor:
    """:func:`sdft.scoring.completion_hidden_states`, at most ``num_rows`` rows at a time.

    Args:
        model: Causal language model.
        prompts: B token-id lists.
        completions: B token-id lists.
        positions: N positions to gather, row after row.
        num_rows: Rows of a part; None for all at once.

    Returns:
        (N, D) in the order of ``positions``; with gradient if the caller allows it.
    """
    size = num_rows or max(len(prompts), 1)
    parts = []
    for rows, inside in _parts(positions, len(prompts), size):
        arguments = (model, prompts[rows], completions[rows], inside)
        if torch.is_grad_enabled() and rows.stop < len(prompts):
            parts.append(checkpoint(completion_hidden_states, *arguments, use_reentrant=False))
        else:
            parts.append(completion_hidden_states(*arguments))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _parts(
    positions: LossPositions, num_rows: int, size: int
) -> Iterator[tuple[slice, LossPositions]]:
    """The rows of each part, and its positions counted from its first row."""
    for start in range(0, num_rows, size):
        rows = slice(start, min(start + size, num_rows))
        inside = (positions.rows >= rows.start) & (positions.rows < rows.stop)
        yield (
            rows,
            replace(
                positions,
                rows=positions.rows[inside] - rows.start,
                offsets=positions.offsets[inside],
                tokens=positions.tokens[inside],
                num_sequences=rows.stop - rows.start,
            ),
        )
