"""Matrix products of bfloat16 factors with float32 results, if the device supports them.

Logits rounded to bfloat16 have 8 significant bits. The divergence of a student close to its teacher
depends on small differences of logits: at a true KL of 0.004 nats, the gradient then has an error
of a quarter. A product of the same factors with float32 results only has the rounding error of the
factors, at the same speed. CUDA devices support this for bfloat16; CPUs do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

VOCABULARY_SLICE = 8192


@cache
def keeps_float32_sums(device: str, dtype: torch.dtype) -> bool:
    """Whether a device type can multiply factors of this dtype into float32, found by trying."""
    try:
        with unset_fake_temporarily():  # tensors without data would say yes for every device
            factor = torch.ones(8, 8, device=device, dtype=dtype)
            torch.mm(factor, factor, out_dtype=torch.float32)
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return True


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The result type of :func:`product_into` for factors of this dtype."""
    narrow = dtype == torch.bfloat16
    return torch.float32 if narrow and keeps_float32_sums(device.type, dtype) else dtype


def product_into(out: Tensor, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Write left @ right + bias, of (n, m), (m, k) and (k,), to ``out``, (n, k).

    The factors must have the type of ``out``, or a type for which :func:`product_dtype` gives it.
    """
    if left.dtype != out.dtype:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
        return out if bias is None else out.add_(bias)
    if bias is None:
        return torch.mm(left, right, out=out)
    return torch.addmm(bias.to(out.dtype), left, right, out=out)


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The product of (n, m) and (m, k) in a type that :func:`product_dtype` gives."""
    return left @ right if dtype == left.dtype else torch.mm(left, right, out_dtype=dtype)


def add_outer(total: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype) -> None:
    """Add left.T @ right, of (n, V) and (n, D), to the total (V, D) in the total's type.

    Factors of another type are multiplied by :func:`product`, with results of ``dtype``, one slice
    of the vocabulary at a time.
    """
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
        return
    for part in slices_from_the_end(total.shape[0], VOCABULARY_SLICE):
        total[part] += product(left[:, part].t(), right, dtype).to(total.dtype)


def slices_from_the_end(stop: int, step: int) -> Iterator[slice]:
    """Slices of at most ``step`` entries that cover [0, stop), the last one first."""
    for first in reversed(range(0, stop, step)):
        yield slice(first, min(first + step, stop))
