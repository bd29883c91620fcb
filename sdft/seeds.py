"""Seeds: every random stream of a run, and blocks that restore the global random states.

A random number depends on its stream, the run's seed and counters, never on what was drawn before
it, so a resumed run draws the same numbers. The rows of a task do not depend on the run's seed:
they are generated and selected by seeds made from the task's name (:mod:`sdft.tasks`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, unique
from hashlib import blake2b

import numpy as np
import torch


@unique
class Stream(IntEnum):
    """What random numbers are drawn for. New purposes get new numbers; old numbers never change."""

    ROW_ORDER = 1  # stage, pass over the data
    REPLAYED_ROWS = 2  # stage, pass over the earlier tasks' rows
    SHOWN_DEMONSTRATIONS = 3  # task, row
    ADAPTER_START = 4
    DROPOUT = 5  # optimizer step, rank
    ROLLOUTS = 6  # optimizer step, place in the batch
    TEACHER_PREAMBLES = 7  # optimizer step, place in the batch
    TEACHER_SAMPLES = 8  # stage, task, row
    DRIFT = 9  # prompt
    PASS_AT_K = 10  # sample, task, row
    WEIGHT_ROUNDING = 11  # optimizer step
    TEACHER_ROUNDING = 12  # optimizer step
    GENERAL_ANSWERS = 13  # prompt
    ANCHOR_ANSWERS = 14  # stage, prompt


def mix_seed(stream: Stream, seed: int, *counters: int | str) -> int:
    """One 63-bit seed from a stream, the run's seed and counters.

    Args:
        stream: What the numbers are for, so that no two purposes share them.
        seed: The run's seed.
        counters: What distinguishes this seed from others of the stream: numbers, or names of
            tasks and rows.
    """
    mixed = 0x9E3779B97F4A7C15
    for counter in (stream, seed, *counters):
        part = _number_of(counter) if isinstance(counter, str) else counter
        mixed = (mixed ^ (part & 0xFFFFFFFFFFFFFFFF)) & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF  # multiply, then fold
        mixed ^= mixed >> 31
    return mixed & 0x7FFFFFFFFFFFFFFF


def _number_of(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest())


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with seeded global generators, and restore their states afterwards.

    This covers the generators of Python, numpy and torch, on every device.

    Args:
        seed: Seed of the block's random numbers.
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
