"""Divergences that look at a few tokens of each distribution: the sampled one, or k of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdft.loss.divergences import (
    Divergence,
    EntrywiseDivergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
)

DIRECTIONS = ("forward", "reverse", "jsd")


@dataclass(frozen=True)
class SampledToken(Divergence):
    """Single-sample estimator of KL(student || teacher) (appendix A.1).

    The value is log p_student(y) - log p_teacher(y), whose mean over y ~ student is the reverse
    KL. The gradient is the score function's, value * grad log p_student(y), whose mean is the
    gradient of the reverse KL. It is not the derivative of the value: the mean of that is 0.
    """

    def closed_form(
        self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The log-ratio at the token, and log-ratio * (one-hot(token) - p_student)."""
        index = tokens.unsqueeze(-1)
        student_log = student_logits.log_softmax(-1)
        ratio = student_log.gather(-1, index) - teacher_logits.log_softmax(-1).gather(-1, index)
        ratio.nan_to_num_(0.0, 0.0, 0.0)
        gradient = student_log.exp_().mul_(-ratio).scatter_add_(-1, index, ratio)
        return ratio.squeeze(-1), gradient


@dataclass(frozen=True)
class CrossEntropy(Divergence):
    """-log p_student(token): supervised fine-tuning's loss; there is no teacher."""

    needs_teacher: ClassVar[bool] = False

    def closed_form(
        self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The surprisal of the token, and p_student - one-hot(token)."""
        index = tokens.unsqueeze(-1)
        student_log = student_logits.log_softmax(-1)
        values = -student_log.gather(-1, index)
        gradient = student_log.exp_()
        gradient.scatter_add_(-1, index, gradient.new_full(index.shape, -1.0))
        return values.squeeze(-1), gradient


@dataclass(frozen=True)
class _TopK(Divergence):
    """What the two top-k divergences share."""

    k: int = 100
    tail: bool = True
    direction: str = "forward"
    beta: float = 0.5
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k!r}; the support needs at least 1 token")
        self.inner()

    def inner(self) -> EntrywiseDivergence:
        """The divergence taken on the support."""
        if self.direction == "forward":
            return ForwardKL(clip=self.clip)
        if self.direction == "reverse":
            return ReverseKL(clip=self.clip)
        if self.direction == "jsd":
            return JensenShannon(clip=self.clip, beta=self.beta)
        raise ValueError(f"direction is {self.direction!r}; valid: {', '.join(DIRECTIONS)}")

    @abstractmethod
    def ranked(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The (n, V) logits whose k largest entries are the support."""

    def closed_form(
        self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The inner divergence on the support's logits; the support itself is a constant."""
        if self.k > student_logits.shape[-1]:
            raise ValueError(f"k is {self.k}; the vocabulary has {student_logits.shape[-1]} tokens")
        support = self.ranked(student_logits, teacher_logits).topk(self.k, dim=-1).indices
        if not self.tail:
            values, inner = self.inner().closed_form(
                student_logits.gather(-1, support), teacher_logits.gather(-1, support), tokens
            )
            return values, torch.zeros_like(student_logits).scatter_(-1, support, inner)
        student, rest = _bucketed(student_logits, support)
        teacher, _ = _bucketed(teacher_logits, support)
        values, inner = self.inner().closed_form(student, teacher, tokens)
        # The bucket's logit is the logsumexp of the rest: its gradient spreads as their softmax.
        gradient = rest.softmax(-1).nan_to_num_(0.0).mul_(inner[:, -1:])
        return values, gradient.scatter_(-1, support, inner[:, :-1])


def _bucketed(logits: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the support and of one bucket for the rest, (n, k + 1); and the rest, (n, V).

    Both are shifted by the row's maximum, without which the bucket's logit would lose the digits
    of large logits. In the rest, the support is -inf.
    """
    rest = logits - logits.amax(-1, keepdim=True)
    kept = rest.gather(-1, support)
    rest.scatter_(-1, support, -torch.inf)
    return torch.cat([kept, rest.logsumexp(-1, keepdim=True)], -1), rest


@dataclass(frozen=True)
class TopKTeacher(_TopK):
    """A divergence on the k tokens that are most probable to the teacher.

    Args:
        k: Size of the support.
        tail: Add one bucket with all the probability outside the support. Without it both
            distributions are renormalised on the support.
        direction: "forward" for KL(teacher || student), "reverse" for KL(student || teacher), or
            "jsd".
        beta: The teacher's share of the mixture when ``direction`` is "jsd".
        clip: Upper bound of each entry's term in nats, None for off.
    """

    def ranked(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The teacher's."""
        return teacher_logits


@dataclass(frozen=True)
class TopKStudent(_TopK):
    """A divergence on the k tokens that are most probable to the student.

    Args:
        k: Size of the support.
        tail: Add one bucket with all the probability outside the support. Without it both
            distributions are renormalised on the support.
        direction: "forward" for KL(teacher || student), "reverse" for KL(student || teacher), or
            "jsd".
        beta: The teacher's share of the mixture when ``direction`` is "jsd".
        clip: Upper bound of each entry's term in nats, None for off.
    """

    def ranked(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The student's."""
        return student_logits
