"""Which task is trained when: a pure function of the counters.

A *stage* is a position in the sequence of tasks: stage k (from 0) trains task k. It is not
Lightning's ``setup(stage)``, which means fit, validate, test or predict. Every stage is one
Lightning epoch, so ``trainer.current_epoch`` is the stage while it trains and the number of
finished stages between two of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The sequence of tasks and how many optimizer steps each takes.

    Args:
        tasks: K task names in training order.
        num_rows: K numbers of training rows.
        num_examples: K numbers of examples a stage draws; each pass over a task's rows is a
            fresh permutation, and the last pass may be cut short.
        batch_size: Prompts per optimizer step; the last step of a stage may have fewer.
        seed: Seed of the training order.
    """

    tasks: tuple[str, ...]
    num_rows: tuple[int, ...]
    num_examples: tuple[int, ...]
    batch_size: int
    seed: int

    @property
    def num_stages(self) -> int:
        """K."""
        return len(self.tasks)

    def steps_in_stage(self, stage: int) -> int:
        """Optimizer steps of one stage."""
        return -(-self.num_examples[stage] // self.batch_size)

    def first_step(self, stage: int) -> int:
        """Optimizer steps taken before a stage begins."""
        return sum(self.steps_in_stage(earlier) for earlier in range(stage))

    def batches(self, stage: int, start: int = 0) -> Iterator[list[int]]:
        """Row indices of every batch of a stage, from batch ``start`` on.

        The order depends on (seed, stage, pass over the data) alone.
        """
        order = self._order(stage)
        for batch in range(start, self.steps_in_stage(stage)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _order(self, stage: int) -> list[int]:
        rows, examples = self.num_rows[stage], self.num_examples[stage]
        order: list[int] = []
        for data_pass in range(-(-examples // rows)):
            generator = torch.Generator().manual_seed(mix_seed(self.seed, stage, data_pass))
            order += torch.randperm(rows, generator=generator).tolist()
        return order[:examples]


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
