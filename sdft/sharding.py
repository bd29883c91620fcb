"""Parameters that FSDP2 or tensor parallelism holds in shards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor, Partial


def whole_parameter(parameter: Tensor) -> Tensor:
    """The parameter in full on this rank, gathered if it is sharded; differentiable.

    A collective where it is sharded: every rank must call it, and must run the backward pass. The
    gradient that returns to a shard is averaged over the ranks, as FSDP does with the gradients
    of the parameters it gathers itself.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    whole: Tensor = _Gather.apply(parameter)  # type: ignore[no-untyped-call]
    return whole


class _Gather(torch.autograd.Function):
    """All-gather forward, averaging reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, parameter: DTensor) -> Tensor:
        ctx.mesh, ctx.placements = parameter.device_mesh, parameter.placements
        return parameter.full_tensor()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> DTensor:
        partial = [Partial()] * ctx.mesh.ndim
        summed = DTensor.from_local(gradient, ctx.mesh, partial, run_check=False)
        averaged: DTensor = summed.redistribute(placements=ctx.placements) / ctx.mesh.size()
        return averaged
