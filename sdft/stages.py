"""The order of tasks, rows and batches, computed from counters alone.

A *stage* is a position in the sequence of tasks: stage k (from 0) trains task k. It is not
Lightning's ``setup(stage)``, which means fit, validate, test or predict. Every stage is one
Lightning epoch, so ``trainer.current_epoch`` is the stage while it trains and the number of
finished stages between two of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from sdft.seeds import Stream, mix_seed

Place = tuple[int, int]
"""A training row: the index of its task, and the row's index among the task's training rows."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """The sequence of tasks and how many optimizer steps each takes.

    Args:
        tasks: K task names in training order.
        num_rows: Number of training rows of each of the K tasks.
        num_examples: Number of examples drawn in each of the K stages; each pass over a task's
            rows is a new permutation, and the last pass may be cut short.
        batch_size: Prompts per optimizer step; the last step of a stage may have fewer.
        seed: Seed of the training order.
        replay_fraction: Rows of earlier tasks added to a stage, per row of the stage's own task.
        first_stage: The stage that training begins with; the model was trained on the tasks of
            earlier ones before the run, so these stages take no steps.
    """

    tasks: tuple[str, ...]
    num_rows: tuple[int, ...]
    num_examples: tuple[int, ...]
    batch_size: int
    seed: int
    replay_fraction: float = 0.0
    first_stage: int = 0

    @property
    def num_stages(self) -> int:
        """Number of stages K."""
        return len(self.tasks)

    def steps_in_stage(self, stage: int) -> int:
        """Optimizer steps of one stage."""
        if stage < self.first_stage:
            return 0
        return -(-self.num_examples[stage] // self.batch_size)

    def first_step(self, stage: int) -> int:
        """Optimizer steps taken before a stage begins."""
        return sum(self.steps_in_stage(earlier) for earlier in range(stage))

    def batches(self, stage: int, start: int = 0) -> Iterator[list[Place]]:
        """The rows of every batch of a stage, from batch ``start`` on.

        Each batch has up to ``batch_size`` rows of the stage's own task, then the replayed ones.
        The order depends only on (seed, stage, pass over the data).
        """
        own = [(stage, row) for row in self._order(stage)]
        replayed = self._replayed(stage)
        for batch in range(start, self.steps_in_stage(stage)):
            begin, end = batch * self.batch_size, min((batch + 1) * self.batch_size, len(own))
            yield own[begin:end] + replayed[self._num_replayed(begin) : self._num_replayed(end)]

    def _order(self, stage: int) -> list[int]:
        return self._passes(Stream.ROW_ORDER, self.num_rows[stage], self.num_examples[stage], stage)

    def _replayed(self, stage: int) -> list[Place]:
        """Rows drawn uniformly from all earlier tasks, in random order."""
        earlier = [(task, row) for task in range(stage) for row in range(self.num_rows[task])]
        if not earlier:
            return []
        num_drawn = self._num_replayed(self.num_examples[stage])
        drawn = self._passes(Stream.REPLAYED_ROWS, len(earlier), num_drawn, stage)
        return [earlier[each] for each in drawn]

    def _num_replayed(self, num_own: int) -> int:
        """Number of rows replayed with the first ``num_own`` rows of a stage."""
        return int(self.replay_fraction * num_own + 1e-9)

    def _passes(self, stream: Stream, num_rows: int, num_drawn: int, stage: int) -> list[int]:
        """Indices of rows: one permutation per pass, concatenated."""
        order: list[int] = []
        for data_pass in range(-(-num_drawn // num_rows)):
            seed = mix_seed(stream, self.seed, stage, data_pass)
            order += torch.randperm(
                num_rows, generator=torch.Generator().manual_seed(seed)
            ).tolist()
        return order[:num_drawn]


class WarmupCosine:
    """Factor of the peak learning rate: linear warm-up, then a cosine to zero.

    Args:
        warmup_steps: Steps of warm-up, at most the stage's length.
        num_steps: Optimizer steps of the stage.
    """

    def __init__(self, warmup_steps: int, num_steps: int) -> None:
        self.warmup_steps = min(warmup_steps, num_steps)
        self.num_steps = num_steps

    def __call__(self, step: int) -> float:
        """Factor for step ``step`` of the stage, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        remaining = max(self.num_steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min((step - self.warmup_steps) / remaining, 1.0)))
