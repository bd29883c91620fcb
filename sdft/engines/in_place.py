"""The ``in_place`` engine: the training weights where they are, or a bfloat16 copy of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from sdft.rollout import RolloutRequest, sample
from sdft.sharding import is_sharded
from sdft.types import Rollout, TokenIds

DTYPES = ("float32", "bfloat16")


class InPlaceEngine:
    """Decode with :func:`sdft.rollout.sample`; the default.

    Args:
        dtype: What rollouts are computed in: float32, the training weights themselves, or
            bfloat16, a copy of them, written anew before every rollout, half as large and half as
            long to read. The student is then not quite the sampler, which ``importance_clip``
            corrects. Greedy completions, as evaluation asks for, are always float32.
        max_cache_tokens: Prompts and completions, padding included, that are decoded together:
            a bound of the key-value cache. Longer requests are decoded in parts, prompts of
            similar length together. Completions do not depend on it.

    Raises:
        ValueError: A value is out of range, or the device does not compute in bfloat16.
    """

    def __init__(self, dtype: str = "float32", max_cache_tokens: int = 65536) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype of in_place is {dtype}; it must be {' or '.join(DTYPES)}")
        if dtype == "bfloat16" and not computes_in_bfloat16():
            raise ValueError(
                "dtype of in_place is bfloat16, in which this machine does not compute; set it "
                "to float32"
            )
        if max_cache_tokens < 1:
            raise ValueError(f"max_cache_tokens is {max_cache_tokens}; it must be at least 1")
        self.dtype = dtype
        self.max_cache_tokens = max_cache_tokens
        self._copy: PreTrainedModel | None = None

    def __call__(self, model: PreTrainedModel, request: RolloutRequest) -> Rollout:
        """B completions in the order of the prompts; see :func:`sdft.rollout.sample`.

        Raises:
            ValueError: The copy is asked for, and the weights are spread over ranks.
        """
        if self.dtype != "float32" and request.settings.temperature > 0:
            model = self._bfloat16_copy(model)
        if is_sharded(model):  # every call is a collective, so all ranks make one
            return sample(model, request)
        lengths = [len(prompt) + request.settings.max_new_tokens for prompt in request.prompts]
        parts = list(_parts(lengths, self.max_cache_tokens))
        if len(parts) == 1:
            return sample(model, request)
        return _joined([(part, sample(model, _rows(request, part))) for part in parts])

    @torch.no_grad()
    def _bfloat16_copy(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with today's weights; buffers, such as rotary frequencies, stay as they are."""
        if is_sharded(model):
            raise ValueError(
                "dtype of in_place is bfloat16: sharded weights have no copy; use vllm"
            )
        if self._copy is None:
            self._copy = copy.deepcopy(model).requires_grad_(False)
            for parameter in self._copy.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        torch._foreach_copy_(list(self._copy.parameters()), list(model.parameters()))
        return self._copy


def computes_in_bfloat16() -> bool:
    """Whether the device has instructions for bfloat16, so that it is faster there."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _parts(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows in order of length, cut where the padded tokens of a part would pass the budget."""
    part: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if part and (len(part) + 1) * lengths[row] > budget:
            yield part
            part = []
        part.append(row)
    yield part


def _rows(request: RolloutRequest, rows: list[int]) -> RolloutRequest:
    """The request for some of the rows."""
    seeds, drafts = request.seeds, request.drafts
    return replace(
        request,
        prompts=[request.prompts[row] for row in rows],
        seeds=None if seeds is None else [seeds[row] for row in rows],
        drafts=None if drafts is None else [drafts[row] for row in rows],
    )


def _joined(parts: list[tuple[list[int], Rollout]]) -> Rollout:
    """One rollout of rollouts for some rows each."""
    found: dict[int, tuple[TokenIds, list[float], bool]] = {}
    for rows, rollout in parts:
        columns = zip(rollout.completions, rollout.logprobs, rollout.ended, strict=True)
        found.update(zip(rows, columns, strict=True))
    completions, logprobs, ended = zip(*(found[row] for row in sorted(found)), strict=True)
    return Rollout(list(completions), list(logprobs), list(ended))
