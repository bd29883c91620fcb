"""Running sums that are bitwise reproducible, also on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 512


def running_sum(values: Tensor) -> Tensor:
    """Sums of the values up to and including each, along the last dimension: (..., N).

    On a GPU, PyTorch's ``cumsum`` adds floats in no fixed order, so it raises an error under
    ``use_deterministic_algorithms`` (Lightning's ``deterministic: true``). In that case the sums
    are computed in blocks, as products with a triangular matrix of ones.
    """
    if values.device.type == "cpu" or not torch.are_deterministic_algorithms_enabled():
        return values.cumsum(-1)
    return blockwise_sum(values)


def blockwise_sum(values: Tensor) -> Tensor:
    """:func:`running_sum` without ``cumsum``; on a GPU cuBLAS needs CUBLAS_WORKSPACE_CONFIG."""
    size = values.shape[-1]
    if size <= BLOCK:
        upper = torch.ones(size, size, dtype=values.dtype, device=values.device).triu()
        return values @ upper
    padded = F.pad(values, (0, -size % BLOCK))
    blocks = padded.view(*padded.shape[:-1], -1, BLOCK)
    inside = blockwise_sum(blocks)
    before = blockwise_sum(inside[..., -1]) - inside[..., -1]
    return (inside + before.unsqueeze(-1)).flatten(-2)[..., :size].contiguous()
