"""Compute a loss and its gradients in one pass over tiles of rows.

Each tile is projected once for the student and once for the teacher. The divergence computes the
gradient with respect to the student's logits, by autograd or in closed form. It overwrites the
logits and is added to the gradients of the hidden states and of the head before the next tile is
projected. The memory of the two tiles is allocated once. Within a tile, the divergence works on
blocks of rows to keep its intermediate results small. Nothing of size (N, V) is held in memory:
the backward pass only scales the gradients by the incoming one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdft.loss.divergences import Divergence, widened
from sdft.loss.products import add_outer, product, product_dtype, product_into, slices_from_the_end
from sdft.model.head import VocabularyHead
from sdft.running_sum import running_sum

MIB = 1 << 20
TILE_BYTES = {"cpu": 16 * MIB, "cuda": 128 * MIB}
BLOCKS_PER_TILE = 3
MIN_TILE_ROWS = 128
MAX_TILE_ROWS = 4096


def default_tile_rows(vocab_size: int, device: torch.device) -> int:
    """Rows per tile: as many float32 rows as fit the device's budget, within fixed bounds.

    The lower bound matters for large vocabularies: every tile reads the head and updates its
    gradient, which takes too long for very few rows.
    """
    budget = TILE_BYTES.get(device.type, TILE_BYTES["cuda"])
    return max(MIN_TILE_ROWS, min(MAX_TILE_ROWS, budget // (4 * vocab_size)))


@dataclass(frozen=True, eq=False)
class TiledLoss:
    """A loss with all its inputs except the student's hidden states.

    Args:
        divergence: The divergence at each position.
        tokens: (N,), the sampled tokens.
        weights: (N,), factor of each position's value in the loss; a constant.
        student_head: The student's head.
        teacher_hidden: (N, D'), or None if the divergence has no teacher.
        teacher_head: The teacher's head, or None.
        temperature: Divides both models' logits.
        sequence_ends: (N,), the first row after each row's sequence, for divergences with a
            prefix score; otherwise None.
        tile_rows: Most rows per tile; None chooses by vocabulary and device.
        tile_dtype: Type of the products; None is the device's, see :mod:`sdft.loss.products`.

    Raises:
        ValueError: The temperature or ``tile_rows`` is not positive.
    """

    divergence: Divergence
    tokens: Tensor
    weights: Tensor
    student_head: VocabularyHead
    teacher_hidden: Tensor | None = None
    teacher_head: VocabularyHead | None = None
    temperature: float = 1.0
    sequence_ends: Tensor | None = None
    tile_rows: int | None = None
    tile_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise ValueError(f"temperature is {self.temperature!r}; it must be positive")
        if self.tile_rows is not None and self.tile_rows < 1:
            raise ValueError(f"tile_rows is {self.tile_rows!r}; it must be at least 1, or null")

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The loss () and the detached values (N,) for the student's hidden states (N, D).

        Raises:
            ValueError: The shape of the tokens or weights is not (N,).
        """
        for name, tensor in (("tokens", self.tokens), ("weights", self.weights)):
            if tensor.shape != hidden.shape[:1]:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; it needs ({len(hidden)},)"
                )
        weight, bias = self.student_head.whole()
        enabled = torch.is_grad_enabled()
        loss, values = _Tiled.apply(hidden, weight, bias, self, enabled)  # type: ignore[no-untyped-call]
        return loss, values

    def rows_of_a_tile(self, device: torch.device) -> int:
        """Most rows per tile."""
        return self.tile_rows or default_tile_rows(self.student_head.vocab_size, device)


class _Tiled(torch.autograd.Function):
    """Computes gradients in the forward pass and scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: TiledLoss, grad: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.needed = tuple(grad and need for need in ctx.needs_input_grad[:3])
        ctx.job, ctx.compute_dtype = job, compute_dtype(hidden)
        sweep = _Sweep(job, (hidden, weight, bias), ctx.needed, ctx.compute_dtype)
        values = sweep.run()
        ctx.gradients = sweep.gradients
        ctx.save_for_backward(hidden, weight, bias)
        ctx.mark_non_differentiable(values)
        return (values * sweep.weights).sum(), values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients are scaled in place and returned. A second backward pass, which only
        # retain_graph allows, computes them again.
        inputs = ctx.saved_tensors
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            sweep = _Sweep(ctx.job, inputs, ctx.needed, ctx.compute_dtype)
            sweep.run()
            gradients = sweep.gradients
        return (
            *(
                None if gradient is None else gradient.mul_(grad_loss).to(each.dtype)
                for gradient, each in zip(gradients, inputs, strict=True)
            ),
            None,
            None,
        )


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type of the projections: autocast's if it is on, otherwise the hidden states'.

    It is never float16, because gradients are computed before a gradient scaler acts and would
    underflow.
    """
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    return torch.float32 if dtype == torch.float16 else dtype


class _Projection:
    """Computes a head's matrix product in a given type, into a given buffer."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach()

    def into(self, buffer: Tensor, hidden: Tensor) -> Tensor:
        """Write raw logits (n, V) of hidden states (n, D) to the first n rows of the buffer."""
        out = buffer[: hidden.shape[0]]
        return product_into(out, hidden.to(self.weight.dtype), self.weight.t(), self.bias)


class _Sweep:
    """One pass over the rows, last tile first, because a prefix score needs the later values."""

    def __init__(
        self,
        job: TiledLoss,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        needed: tuple[bool, ...],
        dtype: torch.dtype,
    ) -> None:
        hidden, weight, bias = inputs
        wide = torch.promote_types(dtype, torch.float32)
        self.job = job
        self.hidden = hidden
        self.gradients = [
            torch.zeros_like(each, dtype=wide) if need and each is not None else None
            for each, need in zip(inputs, needed, strict=True)
        ]
        self.student = _Projection(weight, bias, dtype)
        self.teacher = self._teacher_projection(dtype)
        count = hidden.shape[0]
        most = job.rows_of_a_tile(hidden.device)
        self.tile_rows = even_step(count, most)
        self.block_rows = even_step(self.tile_rows, -(-most // BLOCKS_PER_TILE))
        size = (self.tile_rows, weight.shape[0])
        tile_dtype = job.tile_dtype or product_dtype(hidden.device, dtype)
        self.student_tile = hidden.new_empty(size, dtype=tile_dtype)
        self.teacher_tile = self.student_tile
        if self.teacher is not None:
            self.teacher_tile = hidden.new_empty(size, dtype=tile_dtype)
        self.values = hidden.new_zeros(count, dtype=wide)
        self.weights = job.weights.detach().to(wide)
        self.weighted_from = hidden.new_zeros(count + 1, dtype=torch.float64)

    def _teacher_projection(self, dtype: torch.dtype) -> _Projection | None:
        head = self.job.teacher_head
        if head is None:
            return None
        if head.weight is self.job.student_head.weight:
            return self.student
        return _Projection(*head.whole(), dtype)

    def run(self) -> Tensor:
        """Compute the gradients and return the values (N,)."""
        with torch.autocast(self.hidden.device.type, enabled=False):
            self._run()
        return self.values

    def _run(self) -> None:
        for rows in slices_from_the_end(self.hidden.shape[0], self.tile_rows):
            student = self.student.into(self.student_tile, self.hidden[rows])
            teacher = student
            if self.teacher is not None and self.job.teacher_hidden is not None:
                teacher = self.teacher.into(self.teacher_tile, self.job.teacher_hidden[rows])
            for block in slices_from_the_end(rows.stop - rows.start, self.block_rows):
                here = slice(rows.start + block.start, rows.start + block.stop)
                self._differentiate(here, student[block], teacher[block])
            self._accumulate(rows, student)

    def _differentiate(self, rows: slice, student_raw: Tensor, teacher_raw: Tensor) -> None:
        """Store the rows' values, and replace the student's raw logits with their gradient."""
        job, head = self.job, self.job.student_head
        student, teacher = head.finish(widened(student_raw)), teacher_raw
        if job.teacher_head is not None:
            teacher = job.teacher_head.finish(widened(teacher_raw))
        if all(each is None for each in self.gradients):
            student, teacher = student / job.temperature, teacher / job.temperature
            self.values[rows] = job.divergence.values(student, teacher, job.tokens[rows])
            return
        # A closed form overwrites the logits, so whatever else depends on them is computed first.
        slope = None if head.softcap is None else 1.0 - (student / head.softcap).square_()
        policy = None if job.sequence_ends is None else student.softmax(-1)
        if job.temperature != 1.0:
            student, teacher = student / job.temperature, teacher / job.temperature
        values, gradient = job.divergence.values_and_gradient(student, teacher, job.tokens[rows])
        self.values[rows] = values
        factor = (self.weights[rows] / job.temperature).unsqueeze(-1)
        if policy is not None:
            self._add_prefix_score(rows, policy, gradient.mul_(factor))
            factor = torch.ones_like(factor)
        if slope is not None:
            gradient.mul_(slope)
        torch.mul(gradient, factor.mul_(head.multiplier), out=student_raw)

    def _add_prefix_score(self, rows: slice, policy: Tensor, gradient: Tensor) -> None:
        """Add (weighted values later in the sequence) * grad log p(token) (appendix A.1).

        Completions are drawn at temperature 1, so the score is that of the policy at temperature 1.
        """
        assert self.job.sequence_ends is not None
        weighted = (self.values[rows] * self.weights[rows]).double()
        following = self.weighted_from[rows.stop]
        self.weighted_from[rows] = running_sum(weighted.flip(0)).flip(0) + following
        after = self.weighted_from[rows.start + 1 : rows.stop + 1]
        later = (after - self.weighted_from[self.job.sequence_ends[rows]]).to(gradient.dtype)
        later = later.unsqueeze(-1)
        gradient.addcmul_(policy, later, value=-1.0)
        gradient.scatter_add_(-1, self.job.tokens[rows].unsqueeze(-1), later)

    def _accumulate(self, rows: slice, gradient: Tensor) -> None:
        """Propagate the gradient of the raw logits (n, V) to hidden states, weight and bias."""
        grad_hidden, grad_weight, grad_bias = self.gradients
        factor = gradient.to(self.student.weight.dtype)
        if grad_hidden is not None:
            grad_hidden[rows] = product(factor, self.student.weight, self.student_tile.dtype)
        if grad_weight is not None:
            read = self.hidden[rows].to(factor.dtype)
            add_outer(grad_weight, factor, read, self.student_tile.dtype)
        if grad_bias is not None:
            grad_bias += gradient.sum(0, dtype=grad_bias.dtype)


def even_step(count: int, largest: int) -> int:
    """The step, at most ``largest``, that cuts ``count`` rows into the fewest, most even parts."""
    parts = max(1, -(-count // largest))
    return max(1, -(-count // parts))
