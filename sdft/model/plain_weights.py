"""A model's weights as a plain transformers directory holds them: gathered, adapters folded in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

BASE = ".base_layer"  # what peft puts between an adapted layer's name and its weight's


@torch.no_grad()
def plain_weights(
    model: nn.Module, dtype: torch.dtype | None = None, *, keep: bool = True
) -> dict[str, Tensor]:
    """Every weight in host memory; on the model's device stands one tensor at a time.

    A collective where the model is sharded: every rank must call it, one keeps the weights.

    Args:
        model: Causal language model, sharded or not, with adapters or without; it stays as it is.
        dtype: What weights are cast to before they are gathered; None leaves them as they are, and
            those with adapters float32.
        keep: Whether this rank wants the weights; others take part and get none.

    Returns:
        Contiguous tensors by name, tied ones once. They may be the model's own, where nothing had
        to be gathered, cast or moved.
    """
    found = {}
    for name, weight in _plain(model, dtype):
        if keep:
            found[name] = weight.cpu().contiguous()
    return found


def _plain(model: nn.Module, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    adapted = {name: each for name, each in model.named_modules() if isinstance(each, LoraLayer)}
    saved = model.state_dict(keep_vars=True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        layer_name, is_base, _ = name.rpartition(f"{BASE}.")
        if name not in saved or (not is_base and name.rpartition(".lora_")[0] in adapted):
            continue
        weight = tensor.detach()
        if is_base and name.endswith(".weight") and layer_name in adapted:
            weight = weight.float() + _folded(adapted[layer_name])
        if dtype is not None and weight.is_floating_point():
            weight = weight.to(dtype)
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        yield name.replace(f"{BASE}.", "."), weight


def _folded(layer: Any) -> Tensor:
    """What the active adapters add to the layer's weight, in float32."""
    added: list[Tensor] = [layer.get_delta_weight(name) for name in layer.active_adapters]
    return torch.stack(added).sum(0).float()
