"""Gradients before they move weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether no gradient holds NaN or infinity, on this rank."""
    gradients = [_own(each.grad) for each in model.parameters() if each.grad is not None]
    return not gradients or bool(torch.stack(_norms(gradients)).isfinite().all())


def _own(gradient: Tensor) -> Tensor:
    """This rank's part of a sharded gradient."""
    if isinstance(gradient, DTensor):
        return gradient.to_local()
    return gradient


def _norms(gradients: list[Tensor]) -> list[Tensor]:
    """Largest magnitudes: infinite or NaN where an entry is, however large the others are."""
    norms: tuple[Tensor, ...] = torch._foreach_norm(gradients, ord=float("inf"))
    return list(norms)
