"""Seeds: one from several counters, and blocks that leave the global random states alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def mix_seed(*parts: int) -> int:
    """One 63-bit seed from several counters, so that no two purposes share a random stream.

    Args:
        parts: Integers such as (seed, stage, step).
    """
    mixed = 0x9E3779B97F4A7C15
    for part in parts:
        mixed = (mixed ^ (part & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF  # multiply, then fold
        mixed ^= mixed >> 31
    return mixed & 0x7FFFFFFFFFFFFFFF


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block from a seed, and leave no trace of it.

    The global generators of Python, numpy and torch, on every device, get their states back.

    Args:
        seed: What the block's random numbers depend on.
    """
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
