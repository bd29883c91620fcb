"""Context managers: evaluation mode, grouped heads on a CPU, and weights cast only once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

GROUPED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode and restore the mode of every submodule afterwards.

    Generation in train mode with activation checkpointing would give wrong tokens.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def grouped_heads(device: torch.device) -> Iterator[None]:
    """On a CPU, let query heads share their keys and values, also where there is a mask.

    transformers copies the keys and values for every query head when padding is masked, because
    on a GPU masked attention with shared keys is slow.
    """
    before = os.environ.get(GROUPED_HEADS)
    if device.type != "cpu" or before is not None:
        yield
        return
    os.environ[GROUPED_HEADS] = "1"
    try:
        yield
    finally:
        del os.environ[GROUPED_HEADS]


@contextmanager
def weights_as_autocast(model: nn.Module) -> Iterator[None]:
    """Run a block with linear weights cast once to autocast's type, if autocast is on.

    Otherwise Lightning's bf16-mixed casts every weight again in every pass. The results are the
    same, since the products use the cast weights either way. Only for passes without gradient;
    models sharded by FSDP2 are left unchanged.
    """
    device = next(model.parameters()).device.type
    layers = [each for each in model.modules() if isinstance(each, nn.Linear)]
    if not torch.is_autocast_enabled(device) or any(
        isinstance(each, FSDPModule) for each in model.modules()
    ):
        yield
        return
    dtype, before = torch.get_autocast_dtype(device), [dict(each._parameters) for each in layers]
    for layer in layers:
        for name, parameter in layer._parameters.items():
            if parameter is not None and parameter.dtype == torch.float32:
                cast = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                layer._parameters[name] = cast
    try:
        yield
    finally:
        for layer, parameters in zip(layers, before, strict=True):
            layer._parameters.update(parameters)
