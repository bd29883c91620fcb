"""Decode the rows of a rollout, reading several drafted tokens per forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from sdft.model.batching import groups_to_read, sent
from sdft.model.sharding import is_sharded
from sdft.rollout.kv_cache import cache_keyword, growing_cache, joined
from sdft.rollout.stopping import Ending
from sdft.types import Rollout, TokenIds

# Drafted tokens read per forward pass, over all rows. Up to about this many tokens, reading the
# weights takes longer than computing with them, so that a rejected draft costs little.
DRAFT_BUDGET = 64
# Backing off: passes without a draft after 0, 1, 2, and more consecutive rejected drafts.
BACKOFF = (0, 0, 1, 3)
FIRST_DRAFT_LENGTH = 4  # tokens read with the prompt, before anything is known of acceptance


class Decoding:
    """The active rows of a rollout, their cache, and the tokens of every row so far.

    A pass reads, for every active row, its last drawn token and a draft of what follows, padded
    on the right to the longest. Columns of the cache that hold rejected drafts or padding are
    masked, and dropped if no row needs them. What to read and mask is decided in host memory, so
    the program waits for a GPU only once per pass, when it reads the draws.

    Args:
        model: Causal language model.
        prompts: B non-empty token-id lists.
        drafts: B guesses of the completions; may be empty.
        max_new_tokens: Length limit of a completion.
        ending: Decides where a completion ends.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[TokenIds],
        drafts: Sequence[TokenIds],
        max_new_tokens: int,
        ending: Ending,
    ) -> None:
        self._model = model
        self._device = model.device
        self._prompts = prompts
        self._cache = growing_cache(model.config)
        self._cache_keyword = cache_keyword(model)
        plain = _can_drop_columns(self._cache)
        self._drafts = drafts if plain else [[]] * len(prompts)
        self._mask_every_layer = plain and model.config._attn_implementation == "sdpa"
        self._places = [_places(draft) for draft in self._drafts]
        self._max_new_tokens = max_new_tokens
        self._ending = ending
        self._completions: list[list[int]] = [[] for _ in prompts]
        self._logprobs: list[list[float]] = [[] for _ in prompts]
        self._ended = [False] * len(prompts)
        self._draft_length = [FIRST_DRAFT_LENGTH] * len(prompts)  # limits for the next drafts
        self._num_rejected = [0] * len(prompts)  # consecutive, at the first token
        self._num_skipped = [0] * len(prompts)  # passes until the next draft
        self.active = list(range(len(prompts)))

    def prefill(self) -> Tensor:
        """Read the prompts and the first drafts; return (M, V) logits, see :meth:`append`.

        ``read_rows`` and ``read_offsets``, lists of length M, then give the completion and the
        index in it of the token that each row of logits predicts.
        """
        groups = self._prefill_groups()
        self.active = [row for group in groups for row in group]
        self._propose()
        drafts = dict(zip(self.active, self._proposed, strict=True))
        logits, masks, caches = zip(
            *(self._read_prompts(group, drafts) for group in groups), strict=True
        )
        width = max(mask.shape[1] for mask in masks)
        self._mask = torch.cat([F.pad(mask, (width - mask.shape[1], 0)) for mask in masks])
        self._cache = joined(caches)
        (asked,) = sent(self._device, self._asked())
        return torch.cat(logits).flatten(0, 1)[asked]

    def step(self) -> Tensor:
        """Read each active row's last token and its draft; return (M, V) logits."""
        self._propose()
        ids = [
            [self._completions[row][-1], *draft, *[0] * (self._num_drafted - len(draft))]
            for row, draft in zip(self.active, self._proposed, strict=True)
        ]
        read = [len(self._prompts[row]) + len(self._completions[row]) - 1 for row in self.active]
        positions = torch.tensor(read)[:, None] + torch.arange(len(ids[0]))
        self._mask = F.pad(self._mask, (0, len(ids[0])), value=True)
        asked = self._asked()
        logits, there = self._read(torch.tensor(ids), positions, self._mask, self._cache, asked)
        logits = logits.flatten(0, 1)
        return logits if len(asked) == len(logits) else logits[there]

    def append(self, tokens: Tensor, logprobs: Tensor) -> None:
        """Keep each row's draws up to and including the first that differs from its draft.

        Args:
            tokens: (M,) one draw per row of logits that :meth:`prefill` or :meth:`step` returned:
                for every active row, one after its last token and one after each drafted token.
            logprobs: (M,) log-probabilities of the draws.
        """
        both: list[list[float]] = torch.stack([tokens.double(), logprobs.double()], 1).tolist()
        draws = [(int(token), logprob) for token, logprob in both]  # on a GPU, one wait for both
        start, kept = 0, []
        for row, draft in zip(self.active, self._proposed, strict=True):
            kept.append(self._extend(row, draft, draws[start : start + len(draft) + 1]))
            start += len(draft) + 1
        self._forget_rejected(kept)
        self._drop_ended()

    def rollout(self) -> Rollout:
        """The completions of all rows."""
        return Rollout(
            completions=self._completions,
            logprobs=self._logprobs,
            ended=self._ended,
        )

    def _extend(self, row: int, draft: TokenIds, draws: list[tuple[int, float]]) -> int:
        """Append draws while they match the row's draft; return how many tokens it confirmed."""
        for confirmed, (token, logprob) in enumerate(draws):
            self._completions[row].append(token)
            self._logprobs[row].append(logprob)
            self._ended[row] = self._ending.ends(self._completions[row])
            agrees = confirmed < len(draft) and token == draft[confirmed]
            if not agrees or self._ended[row]:
                break
        # The next draft length is about twice the number of tokens accepted now.
        self._draft_length[row] = 2 * confirmed + 1
        if draft:
            self._num_rejected[row] = 0 if confirmed else self._num_rejected[row] + 1
            self._num_skipped[row] = BACKOFF[min(self._num_rejected[row], len(BACKOFF) - 1)]
        return confirmed

    def _propose(self) -> None:
        """Choose the next draft of every active row."""
        share = DRAFT_BUDGET // len(self.active)
        self._proposed = [self._proposal(row, share) for row in self.active]
        self._num_drafted = max(map(len, self._proposed))

    def _proposal(self, row: int, longest: int) -> TokenIds:
        """A row's next draft; empty while it is backing off after rejected drafts."""
        if self._num_skipped[row]:
            self._num_skipped[row] -= 1
            return []
        return self._continuation(row)[: min(longest, self._draft_length[row], self._room(row) - 1)]

    def _room(self, row: int) -> int:  # tokens left to the length limit
        return self._max_new_tokens - len(self._completions[row])

    def _continuation(self, row: int) -> TokenIds:
        """The part of a row's draft after the position of the row's last token in it.

        If the token occurs several times, the nearest position counts; if never, there is no draft.
        """
        draft, completion = self._drafts[row], self._completions[row]
        if not completion:
            return draft
        here = len(completion) - 1
        places = self._places[row].get(completion[-1], ())
        nearest = min(places, key=lambda place: abs(place - here), default=len(draft))
        return draft[nearest + 1 :]

    def _prefill_groups(self) -> list[list[int]]:
        """Groups of prompts to read together, of similar length to reduce padding."""
        if is_sharded(self._model) or not _can_drop_columns(self._cache):
            return [self.active]
        return groups_to_read([len(prompt) for prompt in self._prompts], self._device)

    def _read_prompts(
        self, rows: Sequence[int], drafts: Mapping[int, TokenIds]
    ) -> tuple[Tensor, Tensor, DynamicCache]:
        """Read some rows' prompts, padded on the left; return their logits, mask and cache."""
        prompts = [self._prompts[row] for row in rows]
        width = max(map(len, prompts))
        ids = [
            [0] * (width - len(prompt))
            + [*prompt, *drafts[row], *[0] * (self._num_drafted - len(drafts[row]))]
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        pad = torch.tensor([width - len(prompt) for prompt in prompts])[:, None]
        columns = torch.arange(width + self._num_drafted)
        mask, positions = columns >= pad, (columns - pad).clamp(min=0)
        cache = growing_cache(self._model.config)
        logits, _ = self._read(torch.tensor(ids), positions, mask, cache)
        return logits, mask, cache

    def _read(
        self,
        ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        cache: DynamicCache,
        asked: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits after the last known token and after each of n drafted tokens, (rows, n + 1, V).

        The arguments are in host memory and are sent to the device in one transfer, together with
        ``asked``, the indices of the logits to use, which is returned on the device.
        """
        asked = torch.empty(0, dtype=torch.long) if asked is None else asked
        masked = not mask.all()
        parts = (ids, positions, asked, mask.long() if masked else mask[:0].long())
        ids, positions, asked, there = sent(self._device, *parts)
        logits: Tensor = self._model(
            input_ids=ids,
            attention_mask=self._attention_mask(there, ids.shape[1]) if masked else None,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=self._num_drafted + 1,
            **{self._cache_keyword: cache},
        ).logits
        return logits, asked

    def _attention_mask(self, mask: Tensor, num_read: int) -> Tensor:
        """The mask in a form that transformers uses without waiting for its values on a GPU.

        For a (rows, L) mask, transformers first checks whether anything is masked, which waits for
        the GPU. It uses a (rows, 1, n, L) mask as is in every layer, wrong for sliding windows.
        """
        if not self._mask_every_layer:
            return mask
        columns = torch.arange(mask.shape[1], device=mask.device)
        causal = columns <= columns[mask.shape[1] - num_read :, None]
        return mask.bool()[:, None, None] & causal

    def _asked(self) -> Tensor:
        """Indices, (M,), of the active rows' logits that do not belong to padding."""
        width = self._num_drafted + 1
        asked = [
            (index, row, ahead)
            for index, (row, draft) in enumerate(zip(self.active, self._proposed, strict=True))
            for ahead in range(len(draft) + 1)
        ]
        self.read_rows = [row for _, row, _ in asked]
        self.read_offsets = [len(self._completions[row]) + ahead for _, row, ahead in asked]
        return torch.tensor([index * width + ahead for index, _, ahead in asked])

    def _forget_rejected(self, confirmed: list[int]) -> None:
        """Mask the columns of rejected draft tokens; drop those that no row needs."""
        if not self._num_drafted:
            return
        columns = torch.arange(self._num_drafted)
        self._mask[:, -self._num_drafted :] = columns < torch.tensor(confirmed)[:, None]
        surplus = self._num_drafted - max(confirmed)
        if surplus:
            self._cache.crop(-surplus)
            self._mask = self._mask[:, :-surplus]

    def _drop_ended(self) -> None:
        keep = [
            index
            for index, row in enumerate(self.active)
            if not self._ended[row] and self._room(row)
        ]
        if 0 < len(keep) < len(self.active):
            self._mask = self._mask[keep]
            (rows,) = sent(self._device, torch.tensor(keep))
            self._cache.batch_select_indices(rows)
            self._drop_unread_columns()
        self.active = [self.active[index] for index in keep]

    def _drop_unread_columns(self) -> None:
        """Drop columns that no active row reads: padding of prompts, and rejected drafts."""
        read = self._mask.any(0)
        if read.all() or not _can_drop_columns(self._cache):
            return
        self._mask = self._mask[:, read]
        (columns,) = sent(self._device, read.nonzero()[:, 0])
        layers: list[Any] = self._cache.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys[:, :, columns], layer.values[:, :, columns]


def _places(draft: TokenIds) -> dict[int, list[int]]:
    """The positions of each token in a draft."""
    found: dict[int, list[int]] = {}
    for place, token in enumerate(draft):
        found.setdefault(token, []).append(place)
    return found


def _can_drop_columns(cache: DynamicCache) -> bool:
    """Whether every layer keeps all columns: sliding windows also count rejected ones."""
    return all(isinstance(layer, DynamicLayer) and not layer.is_sliding for layer in cache.layers)
