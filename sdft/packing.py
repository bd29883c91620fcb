"""Linear layers packed for few rows, as decoding token by token has them.

On a processor, a product of a few rows with a large matrix spends most of its time on bringing
the matrix into the order the kernel wants, again at every call. :func:`packed_linears` does it
once for many calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

EXPECTED_ROWS = 8  # a hint for the kernel's choice of order; other sizes work as well


def can_pack(model: nn.Module) -> bool:
    """Whether packing is available: fp32 weights on a processor with oneDNN."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and all(
        parameter.device.type == "cpu" and parameter.dtype == torch.float32
        for parameter in model.parameters()
    )


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Run a block with packed copies of all linear weights, without gradient.

    The weights must not change inside of the block. Costs a copy of them in memory, and the
    time of about five passes over one token.

    Args:
        model: :func:`can_pack` must hold.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), EXPECTED_ROWS)
            layer.forward = partial(_linear, packed, layer.bias)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _linear(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    """(..., D) to (..., V)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product
