"""The ``in_place`` engine: sample completions with the training weights (README, line 4).

The training weights are used directly, in evaluation and inference mode: the left-padded prompts
are read first, then tokens are decoded with a key-value cache, and rows leave the batch as they
end. Sampling noise comes from the request's seeds, so rollouts neither read nor change the global
random state.

A uniform random number for every token of a completion is drawn before the first pass, and picks
the token from the model's distribution. A completion therefore depends on the weights, its prompt
and its seed, but not on the other rows of the batch.

A draft, which is a guess of the completion, lets one forward pass read several tokens. At every
drafted position a token is drawn from the model's own distribution. Draws are kept up to and
including the first that differs from the draft, because each of them was conditioned on exactly
the tokens before it. A draft therefore saves passes without changing the completions. In
self-distillation the demonstration can serve as the draft: the better the student has learned it,
the fewer passes a rollout takes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from transformers import PreTrainedModel

from sdft.model.modes import evaluation_mode, grouped_heads, weights_as_autocast
from sdft.model.sharding import gathered_weights, is_sharded
from sdft.rollout.decoder import Decoding
from sdft.rollout.generate import generate
from sdft.rollout.request import RolloutRequest
from sdft.rollout.sampling import draw
from sdft.rollout.self_check import CheckedDecoder
from sdft.types import Rollout, TokenIds

CPU_CACHE_TOKENS = 65536


def sample(model: PreTrainedModel, request: RolloutRequest) -> Rollout:
    """Draw one completion per prompt.

    Args:
        model: Causal language model; its weights are read in place.
        request: B prompts and the settings to continue them with.

    Returns:
        B completions in the order of the prompts.
    """
    prompts, settings, noise = request.prompts, request.settings, request.noise()
    drafts = request.drafts or [[]] * len(prompts)
    decoding = Decoding(model, prompts, drafts, settings.max_new_tokens, request.ending)
    with (
        gathered_weights(model),
        torch.inference_mode(),
        weights_as_autocast(model),
        evaluation_mode(model),
        grouped_heads(model.device),
    ):
        logits = decoding.prefill()
        while True:
            chosen = None
            if noise is not None:
                here = noise[decoding.read_rows, decoding.read_offsets]
                chosen = here.to(model.device, non_blocking=True)
            decoding.append(*draw(logits, settings, chosen))
            if not decoding.active:
                break
            logits = decoding.step()
    return decoding.rollout()


class InPlaceEngine:
    """Decode with :func:`sdft.rollout.in_place.sample`; the default.

    A model that it does not decode correctly is decoded with ``generate`` instead; see
    :mod:`sdft.rollout.self_check`.

    Args:
        dtype: float32 samples with the training weights; bfloat16 samples with a copy of them that
            is updated before every rollout and takes half the memory and half the time to read.
            The sampling distribution then differs slightly from the student's, which
            ``importance_clip`` corrects. Greedy completions, as in evaluation, are always float32.
        max_cache_tokens: Tokens of prompts and completions, padding included, that are decoded
            together: a bound on the key-value cache. Longer requests are decoded in parts, prompts
            of similar length together. Completions do not depend on it. null: 65,536 on a CPU,
            where larger batches are no faster, and no bound on a GPU.

    Raises:
        ValueError: A value is out of range, or the device does not compute in bfloat16.
    """

    prepared = staticmethod(gathered_weights)

    def __init__(
        self, dtype: Literal["float32", "bfloat16"] = "float32", max_cache_tokens: int | None = None
    ) -> None:
        if dtype == "bfloat16" and not computes_in_bfloat16():
            raise ValueError(
                "dtype of in_place is bfloat16, in which this machine does not compute; set it "
                "to float32"
            )
        if max_cache_tokens is not None and max_cache_tokens < 1:
            raise ValueError(f"max_cache_tokens is {max_cache_tokens}; it must be at least 1")
        self.dtype = dtype
        self.max_cache_tokens = max_cache_tokens
        self._copy: PreTrainedModel | None = None
        self._decode = CheckedDecoder({"in_place": sample, "generate": generate})

    def __call__(self, model: PreTrainedModel, request: RolloutRequest) -> Rollout:
        """B completions in the order of the prompts; see :func:`sdft.rollout.in_place.sample`.

        Raises:
            ValueError: The dtype is bfloat16 and the weights are sharded, or neither this engine
                nor ``generate`` decodes the model correctly.
        """
        if self.dtype != "float32" and request.settings.temperature > 0:
            model = self._bfloat16_copy(model)
        if is_sharded(model):  # every call is a collective, so all ranks make one
            return self._decode(model, request)
        lengths = [len(prompt) + request.settings.max_new_tokens for prompt in request.prompts]
        budget = self.max_cache_tokens or (CPU_CACHE_TOKENS if model.device.type == "cpu" else None)
        parts = list(_parts(lengths, budget or sum(lengths) * len(lengths)))
        if len(parts) == 1:
            return self._decode(model, request)
        return _joined([(part, self._decode(model, _rows(request, part))) for part in parts])

    @torch.no_grad()
    def _bfloat16_copy(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of the model with its current weights; buffers, such as frequencies, are kept."""
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
    """Whether the device has instructions for bfloat16, which make it faster than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _parts(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Split rows, ordered by length, into parts whose padded tokens stay within the budget."""
    part: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if part and (len(part) + 1) * lengths[row] > budget:
            yield part
            part = []
        part.append(row)
    yield part


def _rows(request: RolloutRequest, rows: list[int]) -> RolloutRequest:
    """The request restricted to some of the rows."""
    seeds, drafts = request.seeds, request.drafts
    return replace(
        request,
        prompts=[request.prompts[row] for row in rows],
        seeds=None if seeds is None else [seeds[row] for row in rows],
        drafts=None if drafts is None else [drafts[row] for row in rows],
    )


def _joined(parts: list[tuple[list[int], Rollout]]) -> Rollout:
    """Join rollouts of parts of the rows into one, in the order of the rows."""
    found: dict[int, tuple[TokenIds, list[float], bool]] = {}
    for rows, rollout in parts:
        columns = zip(rollout.completions, rollout.logprobs, rollout.ended, strict=True)
        found.update(zip(rows, columns, strict=True))
    completions, logprobs, ended = zip(*(found[row] for row in sorted(found)), strict=True)
    return Rollout(list(completions), list(logprobs), list(ended))
