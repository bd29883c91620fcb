"""The learning rate over a stage."""

from __future__ import annotations

import math


class WarmupCosine:
    """Factor of the peak learning rate: linear warm-up, then a cosine to zero.

    Args:
        warmup_steps: Steps of warm-up, cut to the stage's length.
        num_steps: Optimizer steps of the stage.
    """

    def __init__(self, warmup_steps: int, num_steps: int) -> None:
        self.warmup_steps = min(warmup_steps, num_steps)
        self.num_steps = num_steps

    def __call__(self, step: int) -> float:
        """Factor for the stage's step ``step``, from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        remaining = max(self.num_steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min((step - self.warmup_steps) / remaining, 1.0)))
