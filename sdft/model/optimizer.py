"""The learning-rate schedule of a stage, and the norm and finiteness of the gradients."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WarmupCosine:
    """Factor of the peak learning rate: linear warm-up, then a cosine to zero.

    Args:
        warmup_steps: Steps of warm-up, at most the stage's length.
        num_steps: Optimizer steps of the stage.
    """

    def __init__(self, warmup_steps: int, num_steps: int) -> None:
        self.warmup_steps = min(warmup_steps, num_steps)
        self.num_steps = num_steps

    def __call__(self, step: int) -> float:
        """Factor for step ``step`` of the stage, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        remaining = max(self.num_steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min((step - self.warmup_steps) / remaining, 1.0)))


def gradient_norm(model: nn.Module) -> Tensor:
    """Euclidean norm of this rank's part of all gradients: (), float64, possibly infinite."""
    norms = _norms(model, 2.0)
    return norms.double().norm() if len(norms) else norms.double().sum()


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether this rank's gradients have no NaN or infinity, however large the entries are."""
    return bool(_norms(model, float("inf")).isfinite().all())


def _own(gradient: Tensor) -> Tensor:
    """This rank's part of a sharded gradient."""
    if isinstance(gradient, DTensor):
        return gradient.to_local()
    return gradient


def _norms(model: nn.Module, order: float) -> Tensor:
    """Norm of each gradient, over the parameters that have one, in float32 or float64."""
    gradients = [_own(each.grad) for each in model.parameters() if each.grad is not None]
    if not gradients:
        return torch.zeros(0)
    double = any(each.dtype == torch.float64 for each in gradients)
    dtype = torch.float64 if double else torch.float32
    return torch.stack(torch._foreach_norm(gradients, ord=order, dtype=dtype))
