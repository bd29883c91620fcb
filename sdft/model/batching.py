"""Which sequences to pad together, and how they come to a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# What one more forward pass costs, in tokens that could have been padding instead.
TOKENS_PER_PASS = {"cpu": 64, "cuda": 2048}


def groups_to_read(lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """:func:`length_groups` at what a pass costs on a device."""
    price = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cuda"])
    return length_groups(lengths, price)


def length_groups(lengths: Sequence[int], tokens_per_pass: int) -> list[list[int]]:
    """Split sequences into groups of similar length, so that padding costs little.

    Of all splits of the sequences sorted by length, the one that reads the fewest tokens, padding
    included, when every group costs ``tokens_per_pass`` tokens on top.

    Args:
        lengths: Tokens of each sequence.
        tokens_per_pass: Price of a group.

    Returns:
        Indices into ``lengths``, each in one group, from the shortest group to the longest.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    # best[end]: the cheapest cost of the first `end` sequences, and where their last group starts.
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
    """Integers in host memory, brought to a device in one piece and without waiting."""
    flat = torch.cat([part.flatten() for part in parts])
    if device.type == "cuda" and torch.cuda.is_available():
        flat = flat.pin_memory()
    there, pieces, start = flat.to(device, non_blocking=True), [], 0
    for part in parts:
        pieces.append(there[start : start + part.numel()].view(part.shape))
        start += part.numel()
    return pieces
