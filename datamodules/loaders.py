"""Loaders of one process: its shard of each training batch and of each task's evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sdft.stages import Place, StagePlan
from sdft.types import Demonstration, DemonstrationBatch, EvaluationBatch


@dataclass(frozen=True, slots=True)
class Share:
    """One process of several: item i of a sequence belongs to rank i modulo their number.

    Args:
        rank: This process, from 0.
        num_ranks: How many processes there are.
    """

    rank: int = 0
    num_ranks: int = 1

    def of_batch(self, places: list[Place]) -> tuple[list[Place], int]:
        """This process's rows of a batch, and how many of the last ones are padding rows.

        Every process gets the same number of rows, so that all run the same number of forward
        passes. If the batch is not divisible by the number of ranks, padding rows repeat a row
        of another rank.
        """
        own = places[self.rank :: self.num_ranks]
        num_padding_rows = -(-len(places) // self.num_ranks) - len(own)
        return own + places[:num_padding_rows], num_padding_rows

    def of_rows(self, rows: Sequence[Demonstration]) -> Sequence[Demonstration]:
        """This process's rows of an evaluation, possibly none: no row is answered twice."""
        return rows[self.rank :: self.num_ranks]


class StageLoader:
    """One process's shard of a stage's batches; its state is how many it has yielded.

    Args:
        plan: The sequence of stages.
        stage: The stage to serve.
        share: Which rows of each batch are this process's.
        collate: Makes a batch of the rows at these indices, of which the last few are padding rows.
    """

    def __init__(
        self,
        plan: StagePlan,
        stage: int,
        share: Share,
        collate: Callable[[Sequence[Place], int], DemonstrationBatch],
    ) -> None:
        self._plan = plan
        self._stage = stage
        self._share = share
        self._collate = collate
        self._num_given = 0

    def __len__(self) -> int:
        """Number of batches in the stage, including those already yielded."""
        return self._plan.steps_in_stage(self._stage)

    def __iter__(self) -> Iterator[DemonstrationBatch]:
        """The batches not yet yielded."""
        for places in self._plan.batches(self._stage, self._num_given):
            self._num_given += 1
            yield self._collate(*self._share.of_batch(places))

    def state_dict(self) -> dict[str, Any]:
        """The state to continue from with the next batch, on any number of processes."""
        return {"stage": self._stage, "num_given": self._num_given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches of a checkpoint; another stage's state is ignored."""
        if state["stage"] == self._stage:
            self._num_given = state["num_given"]


class EvaluationLoader:
    """One process's shard of a task's rows, in order, in batches.

    Every process yields the same number of batches, so that collective operations match; where its
    rows have run out, the last batches are empty.

    Args:
        rows: The task's rows, those of all processes.
        share: Which of them are this process's.
        batch_size: Rows of a batch, at most.
        collate: Makes a batch of rows, possibly of none.
    """

    def __init__(
        self,
        rows: Sequence[Demonstration],
        share: Share,
        batch_size: int,
        collate: Callable[[Sequence[Demonstration]], EvaluationBatch],
    ) -> None:
        self._rows = share.of_rows(rows)
        self._most_rows = -(-len(rows) // share.num_ranks)  # of any process
        self._batch_size = batch_size
        self._collate = collate

    def __len__(self) -> int:
        """Number of batches, the same for every process."""
        return -(-self._most_rows // self._batch_size)

    def __iter__(self) -> Iterator[EvaluationBatch]:
        """The batches, of which the last may be smaller or empty."""
        for start in range(0, self._most_rows, self._batch_size):
            yield self._collate(self._rows[start : start + self._batch_size])
