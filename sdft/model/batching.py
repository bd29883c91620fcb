"""Choose which sequences to pad together, and copy them to a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The cost of one more forward pass, in padding tokens that take as long.
TOKENS_PER_PASS = {"cpu": 64, "cuda": 2048}


def groups_to_read(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """:func:`length_groups` with the cost of a pass on this device."""
    price = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cuda"])
    return length_groups(lengths, price)


def length_groups(lengths: Sequence[int], tokens_per_pass: int) -> list[list[int]]:
    """Split sequences into groups of similar length, at the lowest total cost.

    The cost is the number of tokens read, padding included, plus ``tokens_per_pass`` for each
    group. The sequences are sorted by length and the cheapest split is found exactly.

    Args:
        lengths: Tokens of each sequence.
        tokens_per_pass: Cost of one group, in tokens.

    Returns:
        Groups of indices into ``lengths``, from the shortest sequences to the longest.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    # best[end]: the lowest cost of the first `end` sequences, and where their last group starts.
    best: list[tuple[int, int]] = [(0, 0)]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        best.append(
            min(
                (best[start][0] + (end - start) * longest + tokens_per_pass, start)
                for start in range(end)
            )
        )
    groups, end = [], len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


def sent(device: torch.device, *parts: Tensor) -> list[Tensor]:
    """Copy integer tensors from host memory to a device in one transfer, without waiting for it."""
    flat = torch.cat([part.flatten() for part in parts])
    if device.type == "cuda" and torch.cuda.is_available():
        flat = flat.pin_memory()
    there, pieces, start = flat.to(device, non_blocking=True), [], 0
    for part in parts:
        pieces.append(there[start : start + part.numel()].view(part.shape))
        start += part.numel()
    return pieces
