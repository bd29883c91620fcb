"""Modes that a block of code runs in: evaluation mode, and grouped attention heads on a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

GROUPED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode and give every submodule its own mode back.

    Generation in train mode with activation checkpointing gives wrong tokens.
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
    """On a CPU, let query heads share the keys they read, also where there is a mask.

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
