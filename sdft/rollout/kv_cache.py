"""A key-value cache that a decoding pass extends in place."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # columns of a new buffer that are still empty


class GrowingLayer(DynamicLayer):
    """A cache layer that appends new columns in place; transformers' own copies all columns.

    ``keys`` and ``values`` are views of the filled columns of two buffers. If they are set to other
    tensors, as selecting rows does, the next update allocates new buffers.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values, (B, H, n, D) each; return all of them, (B, H, L + n, D) each.

        Under autocast, keys are float32 because of the rotary embedding, values are bfloat16, and
        attention casts both. Both are stored in the type of the values.
        """
        key_states = key_states.to(value_states.dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        keys = self.keys = self._extended("keys", key_states)
        values = self.values = self._extended("values", value_states)
        return keys, values

    def _extended(self, name: str, new: Tensor) -> Tensor:
        old: Tensor = getattr(self, name)
        width = old.shape[2] + new.shape[2]
        buffer = self._buffers.get(name)
        begins = buffer is not None and old.data_ptr() == buffer.data_ptr()
        if buffer is None or not begins or width > buffer.shape[2]:
            batch, heads, _, size = new.shape
            buffer = self._buffers[name] = new.new_empty(batch, heads, width + ROOM, size)
            buffer[:, :, : old.shape[2]] = old
        buffer[:, :, old.shape[2] : width] = new
        return buffer[:, :, :width]


def cache_keyword(model: nn.Module) -> str:
    """The model's argument for a cache: ``cache`` since transformers 5.24, else past_key_values."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class OneTypeStaticCache(StaticCache):
    """A cache of fixed size, which transformers compiles for, with keys in the type of the values.

    As in :class:`GrowingLayer`, autocast gives the two different types, which one update of
    transformers' own cache refuses.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values of a layer, (B, H, n, D) each; return all of them."""
        return super().update(key_states.to(value_states.dtype), value_states, *args, **kwargs)


def fixed_cache(model: PreTrainedModel, num_tokens: int) -> dict[str, StaticCache]:
    """A cache for at least ``num_tokens`` as an argument of the model; none for one without keys.

    There are few sizes, because the decoding step is compiled for each.
    """
    if (name := cache_keyword(model)) not in inspect.signature(model.forward).parameters:
        return {}
    return {name: OneTypeStaticCache(model.config, -(-num_tokens // ROOM) * ROOM)}


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """Create a cache with :class:`GrowingLayer` for plain layers, transformers' own for others."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def joined(caches: Sequence[DynamicCache]) -> DynamicCache:
    """Join the rows of several caches into one, padded on the left; only for plain layers."""
    if len(caches) > 1:
        width = max(cache.get_seq_length() for cache in caches)
        layers: Iterable[Sequence[Any]] = zip(*(cache.layers for cache in caches), strict=True)
        for same in layers:
            same[0].keys = torch.cat([_widened(layer.keys, width) for layer in same])
            same[0].values = torch.cat([_widened(layer.values, width) for layer in same])
    return caches[0]


def _widened(states: Tensor, width: int) -> Tensor:
    """(B, H, L, D) padded on the left to (B, H, width, D)."""
    return F.pad(states, (0, 0, width - states.shape[2], 0))
