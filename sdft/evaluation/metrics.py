"""The accuracy matrix of a sequence of tasks, and the metrics computed from it.

The index convention is defined here. K tasks are learned one after the other,
task k in stage k, both counted from 0. The matrix ``R[stage, task]`` has K + 1 rows and K columns:

* row 0: before any training, the base model;
* row k + 1: after stage k. So ``R[k + 1, k]`` is task k just after it was trained, and
  ``R[k, k]`` is task k just before.

Entries are accuracies in [0, 1]; NaN where nothing was measured. The *last* row is the last one
with any measurement, so every function also works while a sequence is under way. NaN in a result
means that it cannot be known from what was measured, never that it is zero; files say ``null``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

DEFINITIONS = {
    "accuracy": "Share of a task's validation rows answered correctly with greedy decoding, 0 to "
    "1; null where nothing was measured.",
    "average_accuracy": "Mean accuracy over all tasks in the last row, tasks not yet trained "
    "included.",
    "learning_accuracy": "Accuracy of a task right after training on it.",
    "forgetting": "Highest accuracy of a task in any earlier row, the base model's included, "
    "minus its accuracy in the last row (Chaudhry et al., 2018); null until a later task was "
    "trained.",
    "backward_transfer": "Mean of last accuracy minus learning accuracy over the tasks trained "
    "before the last row's (Lopez-Paz & Ranzato, 2017); negative where tasks were forgotten.",
    "forward_transfer": "Mean of accuracy just before training on the task minus accuracy of the "
    "base model, over the tasks but the first, as far as the sequence has come.",
    "test": "Accuracy on each task's test rows, scored once with the final weights.",
}
"""Definition of each number that a run reports."""


class AccuracyMatrix(Metric):
    """The matrix ``R[stage, task]``, filled in entry by entry.

    The state is persistent, so it is part of a ``state_dict``. Every process of a distributed run
    must be given the same accuracies; they are not averaged here.

    Args:
        num_tasks: K, at least 1.
    """

    full_state_update = True
    matrix: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__(sync_on_compute=False)  # one process alone may compute
        if num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}; an accuracy matrix needs at least 1 task")
        empty = torch.full((num_tasks + 1, num_tasks), math.nan, dtype=torch.float64)
        self.add_state("matrix", default=empty, dist_reduce_fx="max", persistent=True)

    def update(self, stage: int, task_index: int, accuracy: float) -> None:
        """Set one entry, replacing any earlier value.

        Args:
            stage: Row, 0 to K.
            task_index: Column, 0 to K - 1.
            accuracy: In [0, 1], or NaN for not measured.

        Raises:
            IndexError: The entry lies outside the matrix.
            ValueError: The accuracy is outside [0, 1].
        """
        num_rows, num_tasks = self.matrix.shape
        if not 0 <= stage < num_rows or not 0 <= task_index < num_tasks:
            raise IndexError(
                f"stage {stage}, task {task_index} lies outside the accuracy matrix of "
                f"{num_rows} stages (0 is before training) and {num_tasks} tasks"
            )
        if not math.isnan(accuracy) and not 0.0 <= accuracy <= 1.0:
            raise ValueError(
                f"accuracy of task {task_index} at stage {stage} is {accuracy}; "
                "give a fraction between 0 and 1"
            )
        matrix = self.matrix.clone()  # a loaded state may still belong to another metric
        matrix[stage, task_index] = accuracy
        self.matrix = matrix

    def compute(self) -> Tensor:
        """The matrix so far, (K + 1, K), NaN where nothing was measured."""
        return self.matrix.clone()


def last_measured_stage(matrix: Tensor) -> int | None:
    """Index of the last row of a (K + 1, K) matrix with any measurement; None if all are NaN."""
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(
            f"an accuracy matrix has one row more than it has tasks, got {tuple(matrix.shape)}"
        )
    measured = (~matrix.isnan()).any(dim=1).nonzero().flatten()
    return int(measured[-1]) if measured.numel() else None


def average_accuracy(matrix: Tensor) -> Tensor:
    """Mean over all K tasks of the last row, also those that were not trained yet.

    Args:
        matrix: (K + 1, K).

    Returns:
        Scalar; NaN if any task is missing from the row.
    """
    last = last_measured_stage(matrix)
    return _unknown(matrix) if last is None else matrix[last].mean()


def learning_accuracy(matrix: Tensor) -> Tensor:
    """``R[k + 1, k]``: each task right after training on it, (K,)."""
    return matrix.diagonal(offset=-1).clone()


def learning_gain(matrix: Tensor) -> Tensor:
    """``R[k + 1, k] - R[0, k]``: learning accuracy over the base model's accuracy, (K,)."""
    return learning_accuracy(matrix) - matrix[0]


def forgetting(matrix: Tensor) -> Tensor:
    """``max over earlier rows of R[., k], minus R[last, k]`` (Chaudhry et al., 2018).

    The base model's row is one of the earlier ones: what a pretrained model knew before any
    training can be forgotten as well. The original starts at the first trained stage.

    Args:
        matrix: (K + 1, K).

    Returns:
        (K,), never less than ``-backward_transfer_per_task``; NaN for tasks with no measured
        stage after their own, thus always for the last task of the sequence.
    """
    last = last_measured_stage(matrix) or 0
    if last == 0:
        return torch.full_like(matrix[0], math.nan)
    earlier = matrix[:last]
    best = earlier.nan_to_num(nan=-math.inf).amax(dim=0)
    best = best.masked_fill(earlier.isnan().all(dim=0), math.nan)
    return _only_overtaken(best - matrix[last], last)


def backward_transfer_per_task(matrix: Tensor) -> Tensor:
    """``R[last, k] - R[k + 1, k]``: the effect of later stages on each task's accuracy.

    Args:
        matrix: (K + 1, K).

    Returns:
        (K,), negative where the task was forgotten; NaN as for :func:`forgetting`.
    """
    last = last_measured_stage(matrix) or 0
    return _only_overtaken(matrix[last] - learning_accuracy(matrix), last)


def backward_transfer(matrix: Tensor) -> Tensor:
    """Mean of :func:`backward_transfer_per_task` (Lopez-Paz & Ranzato, 2017).

    Args:
        matrix: (K + 1, K).

    Returns:
        Scalar, negative when tasks were forgotten; NaN until two stages were measured.
    """
    last = last_measured_stage(matrix) or 0
    return backward_transfer_per_task(matrix)[: max(last - 1, 0)].mean()


def forward_transfer_per_task(matrix: Tensor) -> Tensor:
    """``R[k, k] - R[0, k]``: the effect of earlier stages on each task before its own.

    Args:
        matrix: (K + 1, K).

    Returns:
        (K,); NaN for the first task, which has no earlier stage, and for tasks whose preceding
        stage has not been measured.
    """
    transfer = matrix[:-1].diagonal() - matrix[0]
    transfer[0] = math.nan
    return transfer


def forward_transfer(matrix: Tensor) -> Tensor:
    """Mean of :func:`forward_transfer_per_task` over all tasks except the first.

    Before the end of the sequence, tasks after the next one to be trained are left out.
    """
    last = last_measured_stage(matrix) or 0
    return forward_transfer_per_task(matrix)[1 : last + 1].mean()


def normalised_gain(accuracy: Tensor, base: Tensor, best: Tensor) -> Tensor:
    """Accuracy on a scale where 0 is the base model and 1 the best of all methods (figure 3).

    Args:
        accuracy: Any shape.
        base: The base model's accuracy; broadcasts with ``accuracy``.
        best: The highest accuracy any of the compared methods reached; broadcasts as well.

    Returns:
        ``(accuracy - base) / (best - base)``; NaN where no method is better than the base model.
    """
    room = best - base
    return (accuracy - base) / room.masked_fill(room <= 0, math.nan)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k samples is correct.

    Args:
        num_samples: n completions drawn for one prompt.
        num_correct: c of them that are correct.
        k: Size of the attempt, at most n.

    Returns:
        ``1 - C(n - c, k) / C(n, k)``, exact up to the final rounding.

    Raises:
        ValueError: The counts are inconsistent.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= num_samples, and num_samples is {num_samples}")
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct is {num_correct}, outside 0 to num_samples = {num_samples}")
    # Python integers: binomials of a few hundred overflow floats.
    every = math.comb(num_samples, k)
    return (every - math.comb(num_samples - num_correct, k)) / every


def mean_pass_at_k(num_correct: Sequence[int], num_samples: int, k: int) -> float:
    """Mean of :func:`pass_at_k` over rows with as many samples each.

    Args:
        num_correct: How many samples of each row are correct; at least one row.
        num_samples: Samples drawn for each row.
        k: Size of the attempt, at most ``num_samples``.
    """
    return sum(pass_at_k(num_samples, count, k) for count in num_correct) / len(num_correct)


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, … up to ``largest``, which is always the last."""
    return sorted({2**exponent for exponent in range(largest.bit_length())} | {largest})


def _only_overtaken(per_task: Tensor, last: int) -> Tensor:
    """Keep the entries of tasks trained before the stage of row ``last``; NaN for the others."""
    overtaken = torch.arange(per_task.numel(), device=per_task.device) + 1 < last
    return per_task.masked_fill(~overtaken, math.nan)


def _unknown(matrix: Tensor) -> Tensor:
    """A scalar NaN of the matrix's type."""
    return matrix.new_full((), math.nan)
