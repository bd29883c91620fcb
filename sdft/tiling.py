"""The sweep over tiles of rows that computes a loss and its gradients in one pass.

Nothing of size (N, V) lives. Two tiles of logits are allocated once and reused; inside a tile
the divergence works on blocks of a few rows, which stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdft.head import VocabularyHead
from sdft.losses import Divergence, widened

MIB = 1 << 20
TILE_BYTES = {"cpu": 24 * MIB, "cuda": 128 * MIB}
BLOCK_BYTES = {"cpu": 2 * MIB, "cuda": 32 * MIB}
MIN_TILE_ROWS = 128
MAX_TILE_ROWS = 4096


def default_tile_rows(vocab_size: int, device: torch.device) -> int:
    """Rows per tile: as many float32 rows as fit the device's budget, within fixed bounds.

    The lower bound wins for large vocabularies: with fewer rows every tile would sweep the head
    and its gradient for too little work.
    """
    budget = TILE_BYTES.get(device.type, TILE_BYTES["cuda"])
    return max(MIN_TILE_ROWS, min(MAX_TILE_ROWS, budget // (4 * vocab_size)))


@dataclass(frozen=True, eq=False)
class TiledLoss:
    """All of a loss but the tensors that may receive gradients.

    Args:
        divergence: What is taken at each position.
        tokens: (N,), the sampled tokens.
        weights: (N,), factor of each position's value in the loss.
        student_head: Its scalars are read here; its parameters are passed beside.
        teacher_hidden: (N, D') or None when the divergence has no teacher.
        teacher_head: Goes with ``teacher_hidden``.
        temperature: Divides both models' logits.
        sequence_index: (N,) for divergences with a prefix score, otherwise None.
        tile_rows: Rows per tile.
        want_gradient: Whether a backward pass may follow.
    """

    divergence: Divergence
    tokens: Tensor
    weights: Tensor
    student_head: VocabularyHead
    teacher_hidden: Tensor | None
    teacher_head: VocabularyHead | None
    temperature: float
    sequence_index: Tensor | None
    tile_rows: int
    want_gradient: bool

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The loss () and the detached values (N,) for the student's hidden states (N, D)."""
        head = self.student_head
        loss, values = _Tiled.apply(hidden, head.weight, head.bias, self)  # type: ignore[no-untyped-call]
        return loss, values


class _Tiled(torch.autograd.Function):
    """Gradients are taken in the forward pass and scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: TiledLoss
    ) -> tuple[Tensor, Tensor]:
        needed = tuple(plan.want_gradient and need for need in ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            sweep = _Sweep(hidden, weight, bias, plan, needed, compute_dtype(hidden))
            sweep.run()
        ctx.gradients = (sweep.grad_hidden, sweep.grad_weight, sweep.grad_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, weight.dtype)
        ctx.mark_non_differentiable(sweep.values)
        return sweep.loss(), sweep.values

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss: Tensor, grad_values: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("this loss was already used for a backward pass; compute it again")
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (None if each is None else each.mul_(grad_loss) for each in gradients)
        typed = zip(scaled, ctx.dtypes, strict=True)
        return *(None if each is None else each.to(dtype) for each, dtype in typed), None


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The type of the projections: autocast's where it is on, never float16.

    Gradients are taken before a gradient scaler acts, so in float16 they would vanish.
    """
    device = hidden.device.type
    enabled = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if enabled else hidden.dtype
    return torch.float32 if dtype == torch.float16 else dtype


class _Sweep:
    """One pass over all tiles, last tile first, so that a prefix score knows what follows it."""

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plan: TiledLoss,
        needed: tuple[bool, ...],
        dtype: torch.dtype,
    ) -> None:
        self.plan = plan
        self.hidden = hidden
        self.student = _Projection(plan.student_head, weight, bias, dtype)
        self.teacher: _Projection | None = None
        if plan.teacher_head is not None:
            head = plan.teacher_head
            shared = head.weight is weight
            self.teacher = _Projection(head, weight if shared else head.weight, head.bias, dtype)
            if shared:
                self.teacher.weight = self.student.weight
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        rows = min(plan.tile_rows, hidden.shape[0])
        size = (rows, weight.shape[0])
        self.student_tile = hidden.new_empty(size, dtype=dtype)
        self.teacher_tile = hidden.new_empty(size, dtype=dtype) if self.teacher else None
        budget = BLOCK_BYTES.get(hidden.device.type, BLOCK_BYTES["cuda"])
        self.block_rows = max(1, budget // (4 * weight.shape[0]))
        self.values = hidden.new_zeros(hidden.shape[0], dtype=wide)
        self.weights = plan.weights.to(wide)
        self.grad_hidden = torch.zeros_like(hidden, dtype=wide) if needed[0] else None
        self.grad_weight = torch.zeros_like(weight, dtype=wide) if needed[1] else None
        self.grad_bias = torch.zeros_like(bias, dtype=wide) if needed[2] and bias is not None else None
        self.needs_tile_gradient = any(needed)

    def loss(self) -> Tensor:
        return (self.values * self.weights).sum()

    def run(self) -> None:
        for rows in reversed_slices(0, self.hidden.shape[0], self.plan.tile_rows):
            count = rows.stop - rows.start
            student = self.student.project(self.hidden[rows], self.student_tile[:count])
            teacher = student
            if self.teacher is not None:
                teacher = self.teacher.project(self.plan.teacher_hidden[rows], self.teacher_tile[:count])
            for block in reversed_slices(0, count, self.block_rows):
                here = slice(rows.start + block.start, rows.start + block.stop)
                self.reduce(here, student[block], teacher[block])
            if self.needs_tile_gradient:
                self.accumulate(rows, student)

    def reduce(self, rows: slice, student_raw: Tensor, teacher_raw: Tensor) -> None:
        plan = self.plan
        head = plan.student_head
        student = head.finish(widened(student_raw))
        teacher = student
        if plan.teacher_head is not None:
            teacher = plan.teacher_head.finish(widened(teacher_raw))
        tempered, tempered_teacher = student, teacher
        if plan.temperature != 1.0:
            tempered, tempered_teacher = student / plan.temperature, teacher / plan.temperature
        values, gradient = plan.divergence.closed_form(tempered, tempered_teacher, plan.tokens[rows])
        self.values[rows] = values
        if not self.needs_tile_gradient:
            return
        gradient.mul_((self.weights[rows] / plan.temperature).unsqueeze(-1))
        if head.softcap is not None:
            gradient.mul_(1.0 - (student / head.softcap).square_())
        if head.multiplier != 1.0:
            gradient.mul_(head.multiplier)
        student_raw.copy_(gradient)

    def accumulate(self, rows: slice, gradient: Tensor) -> None:
        if self.grad_hidden is not None:
            self.grad_hidden[rows] = gradient @ self.student.weight
        if self.grad_weight is not None:
            self.grad_weight.addmm_(gradient.t(), self.hidden[rows].to(gradient.dtype))
        if self.grad_bias is not None:
            self.grad_bias += gradient.sum(0)


class _Projection:
    def __init__(self, head: VocabularyHead, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def project(self, hidden: Tensor, out: Tensor) -> Tensor:
        hidden = hidden.detach().to(out.dtype)
        if self.bias is None:
            return torch.mm(hidden, self.weight.t(), out=out)
        return torch.addmm(self.bias, hidden, self.weight.t(), out=out)


def reversed_slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Slices of ``step`` that cover [start, stop), last one first."""
    for first in reversed(range(start, stop, step)):
        yield slice(first, min(first + step, stop))
