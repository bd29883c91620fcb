"""Hidden states of a model at completion positions (README, lines 5 and 6).

Each prompt is joined with its completion and padded on the right, so that a causal model needs no
attention mask: no real token attends to padding. Sequences of very different lengths are read in
several passes to reduce padding. Only the hidden states that predict loss-bearing tokens are
gathered; the loss projects them to the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sdft.model.batching import groups_to_read
from sdft.model.head import final_hidden_states
from sdft.model.sharding import is_sharded
from sdft.types import TokenIds


@dataclass(frozen=True, slots=True)
class LossPositions:
    """The completion tokens that carry loss, flattened over the batch.

    Args:
        rows: (N,) index of the sequence each position belongs to.
        offsets: (N,) index of the token within its completion, from 0.
        tokens: (N,) the completion's token at each position.
        masked: (N,) whether the token is read but carries no loss.
        num_sequences: Number of sequences B.
    """

    rows: Tensor
    offsets: Tensor
    tokens: Tensor
    masked: Tensor
    num_sequences: int

    @classmethod
    def of(
        cls,
        completions: Sequence[TokenIds],
        num_masked: int | Sequence[int] = 0,
        device: torch.device | None = None,
        *,
        keep_masked: bool = False,
    ) -> LossPositions:
        """The positions of all completion tokens except the first ``num_masked`` of each.

        The mask only affects the loss: the model still reads masked tokens.

        Args:
            completions: B token-id lists.
            num_masked: One number for all completions, or one for each.
            device: Device of the tensors.
            keep_masked: Whether to keep the masked tokens, marked in ``masked``.
        """
        if isinstance(num_masked, int):
            num_masked = [num_masked] * len(completions)
        flat = [
            (row, offset, token, offset < masked)
            for row, (completion, masked) in enumerate(zip(completions, num_masked, strict=True))
            for offset, token in enumerate(completion)
            if keep_masked or offset >= masked
        ]
        columns = torch.tensor(flat, dtype=torch.long, device=device).reshape(-1, 4).T
        rows, offsets, tokens, is_masked = columns
        return cls(rows, offsets, tokens, is_masked.bool(), len(completions))

    def gather(self, values: Sequence[Sequence[float]]) -> Tensor:
        """The values at these positions, (N,), from B lists of one value per completion token."""
        places = zip(self.rows.tolist(), self.offsets.tolist(), strict=True)
        here = [values[row][offset] for row, offset in places]
        return torch.tensor(here, device=self.tokens.device)

    def __len__(self) -> int:
        """Number of positions N."""
        return len(self.tokens)


def completion_hidden_states(
    model: PreTrainedModel,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    positions: LossPositions,
) -> Tensor:
    """Hidden states from which a model predicts the loss-bearing tokens.

    Args:
        model: Causal language model.
        prompts: B token-id lists; student and teacher read different ones.
        completions: B token-id lists, the same for student and teacher.
        positions: N positions to gather.

    Returns:
        (N, D) in the order of ``positions``; with gradient if gradients are enabled.
    """
    # The last completion token predicts nothing that is scored, so it is not read.
    sequences = [
        [*prompt, *completion[:-1]] for prompt, completion in zip(prompts, completions, strict=True)
    ]
    device = model.device
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    columns = starts[positions.rows] + positions.offsets
    gathered, places = [], []
    for group in _groups(model, sequences):
        hidden = final_hidden_states(model, input_ids=_padded(sequences, group).to(device))
        place, row = (positions.rows[:, None] == torch.tensor(group, device=device)).nonzero().T
        gathered.append(hidden[row, columns[place]])
        places.append(place)
    return torch.cat(gathered)[torch.cat(places).argsort()]


def _groups(model: PreTrainedModel, sequences: Sequence[TokenIds]) -> list[list[int]]:
    """Groups of rows to read together; one group if the model is sharded."""
    if is_sharded(model):
        return [list(range(len(sequences)))]
    return groups_to_read([len(sequence) for sequence in sequences], model.device)


def _padded(sequences: Sequence[TokenIds], group: Sequence[int]) -> Tensor:
    """Token ids of the group's rows, padded on the right: (rows, longest length)."""
    width = max(len(sequences[row]) for row in group)
    return torch.tensor([[*sequences[row], *[0] * (width - len(sequences[row]))] for row in group])


def hidden_states_in_parts(
    model: PreTrainedModel,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    positions: LossPositions,
    num_rows: int | None,
) -> Tensor:
    """:func:`completion_hidden_states`, at most ``num_rows`` rows at a time.

    Args:
        model: Causal language model.
        prompts: B token-id lists.
        completions: B token-id lists.
        positions: N positions to gather, ordered by row.
        num_rows: Most rows per part; None for all at once.

    Returns:
        (N, D) in the order of ``positions``; with gradient if gradients are enabled.
    """
    size = num_rows or max(len(prompts), 1)
    parts = []
    for rows, inside in _parts(positions, len(prompts), size):
        arguments = (model, prompts[rows], completions[rows], inside)
        if torch.is_grad_enabled() and rows.stop < len(prompts):
            parts.append(_recomputed(*arguments))
        else:
            parts.append(completion_hidden_states(*arguments))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _recomputed(
    model: PreTrainedModel,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    positions: LossPositions,
) -> Tensor:
    """:func:`completion_hidden_states` with activations recomputed in the backward pass.

    The positions are passed as tensors because ``checkpoint`` saves the random state only of the
    devices of its arguments, and dropout must draw the same noise again.
    """

    def part(rows: Tensor, offsets: Tensor, tokens: Tensor) -> Tensor:
        inside = replace(positions, rows=rows, offsets=offsets, tokens=tokens)
        return completion_hidden_states(model, prompts, completions, inside)

    tensors = (positions.rows, positions.offsets, positions.tokens)
    hidden: Tensor = checkpoint(part, *tensors, use_reentrant=False)
    return hidden


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
                masked=positions.masked[inside],
                num_sequences=rows.stop - rows.start,
            ),
        )
