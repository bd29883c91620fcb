"""Answers of a frozen model to some prompts, and the divergence of another model from it.

The next-token distributions at every token of the frozen model's own answers are recorded once, so
the model itself is not needed afterwards. The divergence from them measures drift
(KL(base || model) on general prompts). As a loss it keeps a student close to an earlier version of
itself, as learning without forgetting does with recorded responses (Li & Hoiem 2016,
arXiv 1606.09282, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.loss.tiling import default_tile_rows
from sdft.model.head import VocabularyHead
from sdft.model.modes import evaluation_mode
from sdft.types import TokenIds

NUM_KEPT = 1024
"""Number of most likely tokens kept of each distribution; all others are one entry."""

_LEAST_LOGPROB = -100.0  # of an entry whose probability is 0 in float32


@dataclass(frozen=True, eq=False)
class ReferenceAnswers:
    """B answers of a model, and its next-token distributions at their N tokens.

    For each distribution, the K most likely tokens and the total probability of all others are
    kept. The KL of two distributions reduced in this way is never more than that of the full ones.
    It is less by the probability of the other tokens times the KL within them, and exact if K is
    the size of the vocabulary.

    Args:
        prompts: B token-id lists.
        completions: B token-id lists.
        kept: (N, K) the most likely tokens.
        logprobs: (N, K) their log-probabilities, in nats.
        rest: (N,) log-probability of all other tokens together.
    """

    prompts: Sequence[TokenIds]
    completions: Sequence[TokenIds]
    kept: Tensor
    logprobs: Tensor
    rest: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: PreTrainedModel,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
        num_kept: int = NUM_KEPT,
    ) -> ReferenceAnswers:
        """Record a model's next-token distributions at the tokens of its completions.

        Args:
            model: Causal language model, with its current weights.
            prompts: B token-id lists.
            completions: B token-id lists, the model's own samples.
            num_kept: K, at most the size of the vocabulary.
        """
        head = VocabularyHead.of(model, check=False)
        positions = LossPositions.of(completions, device=model.device)
        with evaluation_mode(model):
            hidden = completion_hidden_states(model, prompts, completions, positions)
        parts = [
            lumped(head.logits(rows).float(), num_kept)
            for rows in torch.split(hidden, default_tile_rows(head.vocab_size, hidden.device))
        ]
        kept, logprobs, rest = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        return cls(list(prompts), list(completions), kept, logprobs, rest)

    def of_rows(self, rows: Sequence[int]) -> ReferenceAnswers:
        """The answers with these row indices, in this order."""
        lengths = [len(completion) for completion in self.completions]
        by_row = torch.split(torch.arange(len(self.rest)), lengths)
        places = torch.cat([by_row[row] for row in rows])
        return ReferenceAnswers(
            [self.prompts[row] for row in rows],
            [self.completions[row] for row in rows],
            self.kept[places],
            self.logprobs[places],
            self.rest[places],
        )

    def kl(self, hidden: Tensor, head: VocabularyHead) -> Tensor:
        """KL(reference || model) at each token, in nats, with gradient if gradients are enabled.

        The logits of all N positions are held in memory at once, so pass a few rows at a time.

        Args:
            hidden: (N, D) the model's hidden states that predict the completions' tokens.
            head: The model's head.

        Returns:
            (N,) float32.
        """
        device = hidden.device
        recorded = (self.kept.to(device), self.logprobs.to(device), self.rest.to(device))
        return lumped_kl(*recorded, head.logits(hidden).float())

    @torch.no_grad()
    def kl_of(self, model: PreTrainedModel) -> Tensor:
        """KL(reference || model) at each of the N tokens, in nats, computed tile by tile."""
        head = VocabularyHead.of(model, check=False)
        positions = LossPositions.of(self.completions, device=model.device)
        with evaluation_mode(model):
            hidden = completion_hidden_states(model, self.prompts, self.completions, positions)
        tile = default_tile_rows(head.vocab_size, hidden.device)
        kept, logprobs, rest = (
            torch.split(each.to(hidden.device), tile)
            for each in (self.kept, self.logprobs, self.rest)
        )
        parts = zip(torch.split(hidden, tile), kept, logprobs, rest, strict=True)
        return torch.cat([lumped_kl(k, p, r, head.logits(rows).float()) for rows, k, p, r in parts])

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for a checkpoint or a safetensors file."""
        lists = {"prompts": self.prompts, "completions": self.completions}
        ragged = {
            f"{name}_{part}": tensor
            for name, rows in lists.items()
            for part, tensor in zip(("ids", "lengths"), _flat(rows), strict=True)
        }
        kept = self.kept.to(torch.int32)
        return {**ragged, "kept": kept, "logprobs": self.logprobs, "rest": self.rest}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> ReferenceAnswers:
        """Restore the answers from :meth:`state`."""
        prompts, completions = (
            [
                row.tolist()
                for row in torch.split(state[f"{name}_ids"], state[f"{name}_lengths"].tolist())
            ]
            for name in ("prompts", "completions")
        )
        kept = state["kept"].long()
        return cls(prompts, completions, kept, state["logprobs"], state["rest"])


def _flat(rows: Sequence[TokenIds]) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    return ids, torch.tensor([len(row) for row in rows], dtype=torch.int32)


def lumped(logits: Tensor, num_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely tokens of each distribution, and all others as one entry.

    Args:
        logits: (N, V) float32.
        num_kept: K.

    Returns:
        (N, K) tokens, (N, K) their log-probabilities, (N,) log-probability of the others.
    """
    top, kept = logits.topk(min(num_kept, logits.shape[-1]), dim=-1)
    total = logits.logsumexp(-1)
    return kept, top - total[:, None], _rest(logits, kept, total)


def lumped_kl(kept: Tensor, logprobs: Tensor, rest: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || model) of distributions reduced to the same entries: (N,), in nats.

    Args:
        kept: (N, K) tokens that have their own entries.
        logprobs: (N, K) the reference's log-probabilities of them.
        rest: (N,) the reference's log-probability of all others together.
        logits: (N, V) the model's, float32, with or without gradient.
    """
    total = logits.logsumexp(-1)
    of_kept = logits.gather(-1, kept) - total[:, None]
    divergence = (logprobs.exp() * (logprobs - of_kept)).sum(-1)
    if kept.shape[-1] == logits.shape[-1]:
        return divergence
    return divergence + rest.exp() * (rest - _rest(logits, kept, total))


def _rest(logits: Tensor, kept: Tensor, total: Tensor) -> Tensor:
    """(N,) log-probability of the tokens that are not kept."""
    if kept.shape[-1] == logits.shape[-1]:
        return torch.full_like(total, _LEAST_LOGPROB)
    others = logits.scatter(-1, kept, -torch.inf).logsumexp(-1) - total
    return others.clamp(min=_LEAST_LOGPROB)
