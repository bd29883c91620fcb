"""Divergences between the student's and the teacher's next-token distributions.

Every divergence works on a tile: n positions, the full vocabulary V, logits in float32 or float64.
A divergence only needs a ``values`` method in ordinary torch: autograd computes the tile's
gradient, and since tiles are differentiated one at a time, no graph of size (N, V) is held in
memory. The sums over all vocabulary entries compute their gradient in closed form, which takes less
memory and time (docs/objective.md). The teacher is always a constant. ``divergence_registry`` lists
divergences by name; ``partial_divergences`` has those that use only a few tokens.

Masked logits: an entry whose logit is -inf for either model is left out of the sum and passes no
gradient. A token that is masked for only one model therefore gives a finite value, where the
textbook divergence is infinite.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Divergence(ABC):
    """A divergence between student and teacher at each position.

    Attributes:
        prefix_score: Whether the gradient also has a term for the score of the sampled prefix,
            which couples the positions of a sequence; :mod:`sdft.loss.tiling` adds this term.
    """

    prefix_score: ClassVar[bool] = False

    @abstractmethod
    def values(self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
        """The divergence at each position, differentiable with respect to the student's logits.

        Args:
            student_logits: (n, V), float32 or float64; receives the gradient.
            teacher_logits: (n, V), same type; a constant.
            tokens: (n,), the sampled token at each position.

        Returns:
            (n,), in nats.
        """

    def values_and_gradient(
        self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """:meth:`values` and their gradient by autograd; training calls this for each tile.

        Args:
            student_logits: (n, V), float32 or float64.
            teacher_logits: (n, V), same type; not the same memory. A closed form may overwrite
                both logits.
            tokens: (n,), the sampled token at each position.

        Returns:
            (n,) values in nats, and (n, V): the derivative of each value with respect to its row of
            ``student_logits``, in memory that nothing else uses.
        """
        with torch.enable_grad():
            student = student_logits.detach().requires_grad_()
            values = self.values(student, teacher_logits.detach(), tokens)
            (gradient,) = torch.autograd.grad(values.sum(), student)
        return values.detach(), gradient

    def __call__(self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
        """:meth:`values` for logits of any type, computed in float32 or float64.

        The graph of the full input is held in memory, so use it for small inputs and tests.
        Training uses :func:`sdft.loss.distillation.distillation_loss`.
        """
        return self.values(widened(student_logits), widened(teacher_logits), tokens)


class _ClosedForm(torch.autograd.Function):
    """Gives autograd the closed-form gradient of a divergence."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, tokens: Tensor, divergence: Divergence
    ) -> Tensor:
        values, gradient = divergence.values_and_gradient(student.clone(), teacher.clone(), tokens)
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_values.unsqueeze(-1), None, None, None


def with_mask_of(other_log: Tensor, log: Tensor) -> Tensor:
    """Make ``log`` -inf where ``other_log`` is, in place; both (n, V) log-probabilities.

    It adds 1e-30 * ``other_log``, which rounding discards for finite values and which is -inf for
    -inf. This takes one pass over memory; building and applying a mask takes several.
    """
    return log.add_(other_log, alpha=1e-30)


def widened(logits: Tensor) -> Tensor:
    """The logits in float32, or unchanged if they are float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True)
class EntrywiseDivergence(Divergence):
    """A sum of f(p_student(v), p_teacher(v)) over vocabulary entries v, with closed-form gradient.

    Args:
        clip: Upper bound of each entry's term in nats, None for off. A clipped entry passes no
            gradient.
    """

    clip: float | None = None

    def __post_init__(self) -> None:
        if self.clip is not None and not 0.0 < self.clip < math.inf:
            raise ValueError(f"clip is {self.clip!r}; give a positive number, or null for off")

    @abstractmethod
    def entries(
        self, student_log: Tensor, teacher_log: Tensor, spare: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Each entry's term f, and p_student * df/dp_student; both (n, V), 0 where masked.

        Args:
            student_log: (n, V) log-probabilities; not changed.
            teacher_log: (n, V) log-probabilities; may be overwritten.
            spare: (n, V), scratch memory.
        """

    def values(self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
        """The divergence with its closed-form gradient; see :meth:`Divergence.values`."""
        values: Tensor = _ClosedForm.apply(student_logits, teacher_logits, tokens, self)  # type: ignore[no-untyped-call]
        return values

    def values_and_gradient(
        self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Values and gradient; through the softmax it is slope - p_student * sum(slopes)."""
        student_log = student_logits.log_softmax(-1)
        teacher_log = torch.log_softmax(teacher_logits, -1, out=student_logits)
        terms, slopes = self.entries(student_log, teacher_log, spare=teacher_logits)
        if self.clip is not None:
            slopes.masked_fill_(terms > self.clip, 0.0)
            terms.clamp_(max=self.clip)
        total = slopes.sum(-1, keepdim=True)
        return terms.sum(-1), slopes.addcmul_(student_log.exp_(), total, value=-1.0)


@dataclass(frozen=True)
class ForwardKL(EntrywiseDivergence):
    """KL(teacher || student): the default, used for the published results.

    Args:
        clip: Upper bound of each entry's term in nats, None for off. A clipped entry passes no
            gradient.
    """

    def entries(
        self, student_log: Tensor, teacher_log: Tensor, spare: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Terms p_teacher * log(p_teacher / p_student); slopes -p_teacher."""
        teacher_log = with_mask_of(student_log, teacher_log)
        terms = torch.sub(teacher_log, student_log, out=spare).nan_to_num_(0.0)
        teacher = teacher_log.exp_()
        return terms.mul_(teacher), teacher.neg_()


@dataclass(frozen=True)
class ReverseKL(EntrywiseDivergence):
    """KL(student || teacher): the paper's equation 1.

    Args:
        clip: Upper bound of each entry's term in nats, None for off. A clipped entry passes no
            gradient.
    """

    def entries(
        self, student_log: Tensor, teacher_log: Tensor, spare: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Terms p_student * log(p_student / p_teacher); slopes p_student + term."""
        student = with_mask_of(teacher_log, spare.copy_(student_log))
        terms = torch.sub(student, teacher_log, out=teacher_log).nan_to_num_(0.0)
        terms.mul_(student.exp_())
        return terms, student.add_(terms)


@dataclass(frozen=True)
class JensenShannon(EntrywiseDivergence):
    """JSD: beta * KL(teacher || m) + (1 - beta) * KL(student || m).

    The mixture is m = beta * teacher + (1 - beta) * student, the convention of Generalized
    Knowledge Distillation. The end points are defined as the KLs themselves: beta = 0 is
    :class:`ForwardKL`, beta = 1 is :class:`ReverseKL`. In between, the value goes to 0 towards both
    end points: value / (beta * (1 - beta)) tends to the forward KL as beta goes to 0 and to the
    reverse KL as beta goes to 1.

    Args:
        clip: Upper bound of each entry's term in nats, None for off. A clipped entry passes no
            gradient.
        beta: Weight of the teacher in the mixture, in [0, 1].
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(
                f"beta is {self.beta!r}; it must lie in [0, 1], where 0 is KL(teacher || student) "
                "and 1 is KL(student || teacher)"
            )

    def entries(
        self, student_log: Tensor, teacher_log: Tensor, spare: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Terms of both KLs to m; slopes (1 - beta) * p_student * log(p_student / m)."""
        if self.beta == 0.0:
            return ForwardKL().entries(student_log, teacher_log, spare)
        if self.beta == 1.0:
            return ReverseKL().entries(student_log, teacher_log, spare)
        student = with_mask_of(teacher_log, spare.copy_(student_log)).add_(math.log1p(-self.beta))
        teacher = with_mask_of(student, teacher_log).add_(math.log(self.beta))
        # log m and the terms, from (1 - beta) * p_student and beta * p_teacher
        mixture = torch.logaddexp(student, teacher)
        slopes = torch.sub(student, mixture).sub_(math.log1p(-self.beta)).nan_to_num_(0.0)
        slopes.mul_(student.exp_())
        terms = torch.sub(teacher, mixture, out=mixture).sub_(math.log(self.beta)).nan_to_num_(0.0)
        return terms.mul_(teacher.exp_()).add_(slopes), slopes


@dataclass(frozen=True)
class RaoBlackwellised(ReverseKL):
    """Analytic reverse KL plus the score term of the prefix (appendix A.1).

    The gradient at position t is grad KL_t + (sum over s > t of KL_s) * grad log p_student(y_t):
    an unbiased gradient of the expected reverse KL of the sequence, since each sampled token
    also decides which positions are visited later. :meth:`values_and_gradient` computes the first
    term; ``distillation_loss`` adds the second, with the weights of the reduction.

    Args:
        clip: Upper bound of each entry's term in nats, None for off. A clipped entry passes no
            gradient.
    """

    prefix_score: ClassVar[bool] = True
