"""Divergences that use only a few tokens of each distribution: the sampled one, or k of them."""

from __future__ import annotations

from dataclasses import dataclass

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
    KL. The gradient is the score-function estimator, value * grad log p_student(y), whose mean is
    the gradient of the reverse KL. It is not the derivative of the value, whose mean is 0.
    """

    def values(self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
        """The log-ratio, times 1 + log p - log p, where only the first log p has a graph."""
        student_log = _token_logprobs(student_logits, tokens)
        ratio = (student_log - _token_logprobs(teacher_logits, tokens)).detach()
        score = (student_log - student_log.detach()).nan_to_num(0.0)
        return ratio.nan_to_num(0.0, 0.0, 0.0) * (1.0 + score)


@dataclass(frozen=True)
class CrossEntropy(Divergence):
    """-log p_student(token), the loss of supervised fine-tuning; there is no teacher."""

    def values(self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
        """The negative log-likelihood of the token."""
        return -_token_logprobs(student_logits, tokens)


def _token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each row's token, (n,)."""
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class TopKTeacher(Divergence):
    """A divergence on the k tokens that the teacher finds most probable.

    Args:
        k: Size of the support.
        tail: Add one entry with all the probability outside the support. Without it, both
            distributions are renormalized on the support.
        direction: "forward" for KL(teacher || student), "reverse" for KL(student || teacher), or
            "jsd".
        beta: Weight of the teacher in the mixture when ``direction`` is "jsd".
        clip: Upper bound of each entry's term in nats, None for off.
    """

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
        """The divergence to compute on the support."""
        if self.direction == "forward":
            return ForwardKL(clip=self.clip)
        if self.direction == "reverse":
            return ReverseKL(clip=self.clip)
        if self.direction == "jsd":
            return JensenShannon(clip=self.clip, beta=self.beta)
        raise ValueError(f"direction is {self.direction!r}; valid: {', '.join(DIRECTIONS)}")

    def ranked(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The (n, V) logits whose k largest entries are the support."""
        return teacher_logits

    def values(self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
        """The inner divergence on the support's logits; the support itself is a constant."""
        if self.k > student_logits.shape[-1]:
            raise ValueError(f"k is {self.k}; the vocabulary has {student_logits.shape[-1]} tokens")
        ranked = self.ranked(student_logits, teacher_logits).detach()
        support = ranked.topk(self.k, dim=-1).indices
        reduced = _with_tail if self.tail else _support_alone
        student, teacher = (reduced(each, support) for each in (student_logits, teacher_logits))
        return self.inner().values(student, teacher, tokens)


@dataclass(frozen=True)
class TopKStudent(TopKTeacher):
    """A divergence on the k tokens that the student finds most probable; options as above."""

    def ranked(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The student's logits."""
        return student_logits


def _support_alone(logits: Tensor, support: Tensor) -> Tensor:
    """Logits of the support, (n, k)."""
    return logits.gather(-1, support)


def _with_tail(logits: Tensor, support: Tensor) -> Tensor:
    """Logits of the support and of one entry for all other tokens, (n, k + 1).

    All are shifted by the row's maximum; otherwise the last entry would lose digits to rounding if
    the logits are large.
    """
    shifted = logits - logits.detach().amax(-1, keepdim=True)
    rest = shifted.scatter(-1, support, -torch.inf)
    highest = rest.detach().amax(-1, keepdim=True)
    # If no other token is left, the entry is masked; its gradient would be NaN, so it passes none.
    from_highest = (rest - highest).masked_fill(highest.isneginf(), 0.0)
    bucket = from_highest.logsumexp(-1, keepdim=True) + highest
    return torch.cat([shifted.gather(-1, support), bucket], -1)
