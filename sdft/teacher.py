"""The teacher: the same model, slower (section 3, appendix A.3).

The teacher's weights φ follow the student's θ as an exponential moving average,

    φ ← rate · θ + (1 - rate) · φ,

once per optimizer step, in fp32: at bf16 precision most of these updates would round away.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMATeacher(nn.Module):
    """A frozen copy of the student that follows it as an exponential moving average.

    It is a plain submodule, so a checkpoint of its owner holds it.

    Args:
        student: The model to copy; weights must be fp32 or wider.
        rate: Share of the student taken over per update, in [0, 1]; 0 keeps the teacher at the
            copy (frozen), 1 makes it the live student.

    Raises:
        ValueError: The rate is outside [0, 1], or the student holds half-precision weights.
    """

    def __init__(self, student: nn.Module, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"teacher_rate is {rate}; it must lie in [0, 1]")
        for name, parameter in student.named_parameters():
            if parameter.is_floating_point() and parameter.element_size() < 4:
                raise ValueError(
                    f"the student's {name} is {parameter.dtype}; an average of half-precision "
                    "weights loses most updates, load the model in float32"
                )
        self.rate = rate
        self.model = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EMATeacher:
        """The teacher always stays in evaluation mode; ``mode`` is ignored."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """φ ← rate · θ + (1 - rate) · φ."""
        own: list[Tensor] = list(self.model.parameters())
        theirs = [parameter.detach() for parameter in student.parameters()]
        torch._foreach_lerp_(own, theirs, self.rate)

    @torch.no_grad()
    def reset(self, student: nn.Module) -> None:
        """φ ← θ: how every stage begins."""
        for own, theirs in zip(self.model.parameters(), student.parameters(), strict=True):
            own.copy_(theirs)
