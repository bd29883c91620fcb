"""Matrix products of narrow factors whose sums are kept in float32, where the device offers it.

Logits rounded to bfloat16 carry 8 bits. The divergence of a student that is close to its teacher
is a difference of such numbers: at a true KL of 0.004 nats the gradient is then off by a quarter.
A product of the same factors that hands its float32 sums out is off by the rounding of the factors
alone, at the same speed. CUDA devices offer it, for bfloat16; a CPU does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

VOCABULARY_SLICE = 8192


@cache
def keeps_float32_sums(device: str, dtype: torch.dtype) -> bool:
    """Whether a kind of device multiplies factors of a type into float32; found by trying."""
    factor = torch.ones(8, 8, device=device, dtype=dtype)
    try:
        torch.mm(factor, factor, out_dtype=torch.float32)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type that :func:`product_into` writes for factors of a type."""
    narrow = dtype == torch.bfloat16
    return torch.float32 if narrow and keeps_float32_sums(device.type, dtype) else dtype


def product_into(out: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write left @ right + bias, of (n, m), (m, k) and (k,), to ``out``, (n, k).

    The factors have the type of ``out``, or one for which :func:`product_dtype` is it.
    """
    if left.dtype != out.dtype:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
        return out if bias is None else out.add_(bias)
    if bias is None:
        return torch.mm(left, right, out=out)
    return torch.addmm(bias.to(out.dtype), left, right, out=out)


def product(left: Tensor, right: Tensor) -> Tensor:
    """The product of (n, m) and (m, k) in :func:`product_dtype` of their type."""
    dtype = product_dtype(left.device, left.dtype)
    return left @ right if dtype == left.dtype else torch.mm(left, right, out_dtype=dtype)


def add_outer(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left.T @ right, (n, V) and (n, D), to the total (V, D) in the total's own type.

    Narrower factors are multiplied as :func:`product` does, a slice of the vocabulary at a time.
    """
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
        return
    for part in slices_from_the_end(total.shape[0], VOCABULARY_SLICE):
        total[part] += product(left[:, part].t(), right)


def slices_from_the_end(stop: int, step: int) -> Iterator[slice]:
    """Slices of at most ``step`` that cover [0, stop), the last one first."""
    for first in reversed(range(0, stop, step)):
        yield slice(first, min(first + step, stop))
