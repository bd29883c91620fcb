"""The implementations that memory.py measures: from hidden states to loss and gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.divergences import Divergence
from sdft.model.head import VocabularyHead

NUM_ROWS = 1024
WIDTH = 576
ALPHAS = {"forward_kl": 0.0, "reverse_kl": 1.0}
"""Divergence -> its weight in TRL."""


class ByAutograd(Divergence):
    """A KL without a closed-form gradient: autograd differentiates it tile by tile."""

    def __init__(self, name: str) -> None:
        self.reverse = name == "reverse_kl"

    def values(self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
        """KL(teacher || student), or the reverse one."""
        student_log, teacher_log = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        return full_kl(student_log, teacher_log, self.reverse)


def full_kl(student_log: Tensor, teacher_log: Tensor, reverse: bool) -> Tensor:
    """The library's KL at each row of two (n, V) tables of log-probabilities."""
    below, above = (teacher_log, student_log) if reverse else (student_log, teacher_log)
    return functional.kl_div(below, above, reduction="none", log_target=True).sum(-1)


class Setting:
    """Inputs of one case: hidden states and heads of a student and a teacher close to it."""

    def __init__(self, vocab_size: int, divergence: str, device: str) -> None:
        torch.manual_seed(0)
        self.student_layer = nn.Linear(WIDTH, vocab_size, bias=False, device=device)
        self.teacher_layer = nn.Linear(WIDTH, vocab_size, bias=False, device=device)
        with torch.no_grad():
            self.student_layer.weight.normal_(std=0.05)
            self.teacher_layer.weight.copy_(self.student_layer.weight).mul_(1.1)
        self.teacher_layer.requires_grad_(False)
        self.hidden = torch.randn(NUM_ROWS, WIDTH, device=device, requires_grad=True)
        self.teacher_hidden = torch.randn(NUM_ROWS, WIDTH, device=device)
        self.tokens = torch.randint(vocab_size, (NUM_ROWS,), device=device)
        self.weights = torch.full((NUM_ROWS,), 1.0 / NUM_ROWS, device=device)
        self.divergence = divergence

    def parameters(self) -> tuple[Tensor, Tensor]:
        """The tensors that receive a gradient."""
        return self.hidden, self.student_layer.weight

    def ours(self) -> Tensor:
        """The tiled loss with the divergence's closed form."""
        return self._tiled(make_divergence(self.divergence))

    def autograd(self) -> Tensor:
        """The tiled loss with autograd in every tile."""
        return self._tiled(ByAutograd(self.divergence))

    def _tiled(self, divergence: Divergence) -> Tensor:
        return distillation_loss(
            self.hidden,
            VocabularyHead(self.student_layer),
            self.teacher_hidden,
            VocabularyHead(self.teacher_layer),
            tokens=self.tokens,
            weights=self.weights,
            divergence=divergence,
        ).loss

    def naive(self) -> Tensor:
        """Both models' logits in full, and the library's KL."""
        student_log = self.student_layer(self.hidden).log_softmax(-1)
        with torch.no_grad():
            teacher_log = self.teacher_layer(self.teacher_hidden).log_softmax(-1)
        values = full_kl(student_log, teacher_log, self.divergence == "reverse_kl")
        return (values * self.weights).sum()

    def trl(self) -> Tensor:
        """Both models' logits in full, and TRL's loss on them."""
        from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss

        student = self.student_layer(self.hidden)
        with torch.no_grad():
            teacher = self.teacher_layer(self.teacher_hidden)
        values = compute_full_logit_self_distillation_loss(
            student, teacher, distillation_alpha=ALPHAS[self.divergence]
        )
        return (values * self.weights).sum()
