"""The teacher: which weights score the student's tokens (section 3, appendix A.3).

With θ the student's weights and φ the teacher's, the kinds are

- ``ema``: φ ← rate · θ + (1 - rate) · φ every n optimizer steps, in fp32, or in bf16 with
  stochastic rounding where the student is bf16: rounded to the nearest bf16, most of these updates
  would be lost. The paper's choice, n = 1 and φ = θ when a stage starts;
- ``stage_start``: φ is θ as it was when the stage started;
- ``base``: φ is θ as it was before the first stage;
- ``student``: φ is θ, always; no weights are held;
- ``model``: φ is another model (:mod:`sdft.model.separate_teacher`).

Each is a module that its owner's checkpoint holds with whatever weights it has of its own: a copy
of the model, which is saved also where it never moves, so that nothing is ever rebuilt from a
name; a copy of the adapters, where the student is trained through adapters on a frozen backbone;
or none. With adapters the average is taken of A and of B, so the teacher computes with
mean(B) mean(A), which is not the mean of B A: close while the student moves little within
1 / rate steps, and as cheap as one adapter.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sdft.model.head import VocabularyHead
from sdft.model.lean_adamw import lerp_with_rounding
from sdft.model.lora import adapters_off, trained_parameters
from sdft.model.modes import evaluation_mode
from sdft.seeds import Stream, mix_seed

TEACHERS = ("ema", "stage_start", "base", "student")


@dataclass(frozen=True, slots=True)
class Average:
    """How an ``ema`` teacher follows the student.

    Args:
        teacher_rate: Share of the student taken over per update, in (0, 1].
        teacher_update_every: Optimizer steps between two updates, counted over the whole run.
        reset_teacher: Start every stage from the student.

    Raises:
        ValueError: A value is out of range.
    """

    teacher_rate: float = 0.01
    teacher_update_every: int = 1
    reset_teacher: bool = True

    def __post_init__(self) -> None:
        rate, every = self.teacher_rate, self.teacher_update_every
        if not 0.0 < rate <= 1.0:
            raise ValueError(
                f"teacher_rate is {rate}; it must lie in (0, 1]; for a teacher that does not move "
                "set teacher to stage_start or base"
            )
        if every < 1:
            raise ValueError(f"teacher_update_every is {every}; it must be at least 1")


class Teacher(nn.Module):
    """What all kinds share: when the teacher's own weights take the student's over.

    Args:
        kind: One of :data:`TEACHERS`.
        average: How an ``ema`` teacher moves; None for the other kinds.
    """

    def __init__(self, kind: str, average: Average | None) -> None:
        super().__init__()
        self.kind = kind
        self.average = average

    def train(self, mode: bool = True) -> Teacher:
        """The teacher always stays in evaluation mode; ``mode`` is ignored."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def start_stage(self, student: nn.Module) -> None:
        """φ ← θ, for the kinds that start every stage from the student."""
        if self.kind == "stage_start" or (self.average is not None and self.average.reset_teacher):
            for own, theirs in zip(self.parameters(), trained_parameters(student), strict=True):
                own.copy_(theirs)

    @torch.no_grad()
    def follow(self, student: nn.Module, num_steps: int, seed: int = 0) -> None:
        """φ ← rate · θ + (1 - rate) · φ, once ``num_steps`` optimizer steps have been taken.

        Args:
            student: θ.
            num_steps: Over the whole run.
            seed: The run's, of a bfloat16 teacher's rounding.
        """
        if self.average is not None and num_steps % self.average.teacher_update_every == 0:
            own: list[Tensor] = list(self.parameters())
            theirs = [parameter.detach() for parameter in trained_parameters(student)]
            if any(each.dtype == torch.bfloat16 for each in own):
                noise = mix_seed(Stream.TEACHER_ROUNDING, seed, num_steps)
                lerp_with_rounding(own, theirs, self.average.teacher_rate, noise)
            else:
                torch._foreach_lerp_(own, theirs, self.average.teacher_rate)

    @abstractmethod
    def scoring(self, student: PreTrainedModel) -> Any:
        """A context whose value is the model to score with, in evaluation mode."""

    def head(self, student_head: VocabularyHead) -> VocabularyHead:
        """The teacher's output head: the student's own, which adapters leave alone."""
        return student_head

    def left_out(self) -> dict[str, Tensor]:
        """Weights that checkpoints leave out, since the configuration names them."""
        return {}


class ModelCopy(Teacher):
    """A frozen copy of the whole student."""

    def __init__(self, student: PreTrainedModel, kind: str, average: Average | None) -> None:
        super().__init__(kind, average)
        _refuse_float16(student)
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.model.eval()  # type: ignore[no-untyped-call]

    @contextmanager
    def scoring(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The copy."""
        del student
        yield self.model

    def head(self, student_head: VocabularyHead) -> VocabularyHead:
        """The copy's own head."""
        del student_head
        return VocabularyHead.of(self.model)


class AdapterCopy(Teacher):
    """Frozen copies of the student's adapters, which take their place while it scores."""

    def __init__(self, student: PreTrainedModel, kind: str, average: Average | None) -> None:
        super().__init__(kind, average)
        self.adapters = nn.ParameterList(
            nn.Parameter(parameter.detach().clone(), requires_grad=False)
            for parameter in trained_parameters(student)
        )

    @contextmanager
    def scoring(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The student with the teacher's adapters; its own come back untouched."""
        self._swap(student)
        try:
            with evaluation_mode(student):
                yield student
        finally:
            self._swap(student)

    def _swap(self, student: nn.Module) -> None:
        for own, theirs in zip(self.adapters, trained_parameters(student), strict=True):
            own.data, theirs.data = theirs.data, own.data
        torch.clear_autocast_cache()  # it may hold the other's weights under this one's name


class Borrowed(Teacher):
    """No weights of its own: the live student, or its backbone with the adapters off."""

    @contextmanager
    def scoring(self, student: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The student, for ``base`` without its adapters."""
        without = adapters_off(student) if self.kind == "base" else nullcontext()
        with without, evaluation_mode(student):
            yield student


def make_teacher(student: PreTrainedModel, kind: str, **average: Any) -> Teacher:
    """The teacher of that kind.

    Args:
        student: The model before training, adapted or not.
        kind: One of :data:`TEACHERS`.
        average: Fields of :class:`Average`, for ``ema`` alone; None stands for the default.

    Raises:
        ValueError: Unknown kind, an option that this kind does not have, or one out of range.
    """
    if kind not in TEACHERS:
        raise ValueError(f"unknown teacher {kind!r}; valid: {', '.join(TEACHERS)}, model")
    if kind != "ema":
        refuse_average(kind, average)
    given = {name: value for name, value in average.items() if value is not None}
    follows = Average(**given) if kind == "ema" else None
    adapted = not all(parameter.requires_grad for parameter in student.parameters())
    if kind == "student" or (kind == "base" and adapted):
        return Borrowed(kind, follows)
    return (AdapterCopy if adapted else ModelCopy)(student, kind, follows)


def refuse_average(kind: str, average: dict[str, Any]) -> None:
    """Refuse options of an average that this kind does not follow.

    Raises:
        ValueError: One is given, that is, not None.
    """
    for name, value in average.items():
        if value is not None:
            raise ValueError(
                f"{name} is {value}, but the teacher is {kind}, which follows no average: leave "
                f"{name} out (null), or set teacher to ema"
            )


def _refuse_float16(student: nn.Module) -> None:
    for name, parameter in student.named_parameters():
        if parameter.dtype == torch.float16:
            raise ValueError(
                f"the student's {name} is {parameter.dtype}, in which an average loses most "
                "updates; load the model in float32 or bfloat16"
            )
