"""A frozen model's answers to some prompts, and how far another model is from it on them.

What a model believed at every token of its own answers is recorded once; the model itself is not
needed again. The divergence from it measures drift (KL(base || model) on general prompts), and as
a loss it anchors a student to an earlier self, as learning without forgetting does with its
recorded responses (Li & Hoiem 2016, arXiv 1606.09282, section 3).
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
"""Tokens kept of each next-token distribution: the most likely ones; the others are one entry."""

_LEAST_LOGPROB = -100.0  # of an entry that has no probability at all in float32


@dataclass(frozen=True, eq=False)
class ReferenceAnswers:
    """B answers of a model, and its next-token distributions at their N tokens.

    Of a distribution the K most likely tokens are kept, and the probability of all others
    together. A divergence of two distributions that are lumped together like this is never more
    than that of the full ones; it falls short by the probability of the others times the
    divergence within them, and is exact where K is the size of the vocabulary.

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
        """Record what a model believes along the completions.

        Args:
            model: Evaluated as it is now.
            prompts: B token-id lists.
            completions: B token-id lists, its own samples.
            num_kept: K, at most the vocabulary.
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
        """The answers with these numbers, in this order."""
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
        """KL(reference || model) at each token, in nats, with gradient if there is one to take.

        The logits of all N positions are held at once: a loss reads a few rows at a time.

        Args:
            hidden: (N, D) the model's hidden states that predict the completions' tokens.
            head: The model's.

        Returns:
            (N,) float32.
        """
        device = hidden.device
        recorded = (self.kept.to(device), self.logprobs.to(device), self.rest.to(device))
        return lumped_kl(*recorded, head.logits(hidden).float())

    @torch.no_grad()
    def kl_of(self, model: PreTrainedModel) -> Tensor:
        """KL(reference || model) at each of the N tokens, in nats, a tile of rows at a time."""
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
        """The answers that :meth:`state` gave."""
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
    """KL(reference || model) of distributions lumped together alike: (N,), in nats.

    Args:
        kept: (N, K) tokens with an entry of their own.
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
