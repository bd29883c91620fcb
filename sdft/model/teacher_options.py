"""The options of a teacher: its kind, and how an EMA teacher is updated."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, get_args

TeacherKind = Literal["ema", "stage_start", "base", "student", "model"]


class TeacherOptions(TypedDict, total=False):
    """Which weights the teacher has, and how an EMA teacher is updated.

    Args:
        kind: ema (the default), stage_start, base, student or model.
        rate: For ema: weight of the student in each update, in (0, 1]; 0.01 by default.
        update_every: For ema: optimizer steps between two updates, counted over the whole run; 1
            by default.
        reset_each_stage: For ema: reset the teacher to the student at the start of each stage, as
            the paper does; true by default.
        pretrained: For model: the model to load, named like the student; it must have the
            student's tokens.
    """

    kind: TeacherKind
    rate: float
    update_every: int
    reset_each_stage: bool
    pretrained: str


@dataclass(frozen=True, slots=True)
class EMAUpdate:
    """When and by how much an ``ema`` teacher is updated; see :class:`TeacherOptions`.

    Raises:
        ValueError: A value is out of range.
    """

    rate: float = 0.01
    update_every: int = 1
    reset_each_stage: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ValueError(
                f"teacher.rate is {self.rate}; it must lie in (0, 1]; for a teacher that is not "
                "updated, set teacher.kind to stage_start or base"
            )
        if self.update_every < 1:
            raise ValueError(f"teacher.update_every is {self.update_every}; it must be at least 1")


def checked_kind(options: TeacherOptions) -> TeacherKind:
    """The kind of teacher that the options name.

    Raises:
        ValueError: The kind is unknown, or does not have one of the options.
    """
    kind = options.get("kind", "ema")
    if kind not in get_args(TeacherKind):
        raise ValueError(
            f"teacher.kind is {kind}; it must be one of {', '.join(get_args(TeacherKind))}"
        )
    of_ema = {field.name for field in fields(EMAUpdate)}
    owners = {"kind": kind, "pretrained": "model", **dict.fromkeys(of_ema, "ema")}
    for name, value in options.items():
        if name not in owners:
            raise ValueError(f"teacher has no option {name}; it has: {', '.join(owners)}")
        if owners[name] != kind:
            raise ValueError(
                f"teacher.{name} is {value}, but teacher.kind is {kind}: only {owners[name]} has "
                f"this option; leave it out, or set teacher.kind to {owners[name]}"
            )
    if kind == "model" and options.get("pretrained") is None:
        raise ValueError("teacher.kind is model: name the other model with teacher.pretrained")
    return kind


def ema_update(options: TeacherOptions) -> EMAUpdate | None:
    """How an ``ema`` teacher is updated, defaults included; None for the other kinds.

    Raises:
        ValueError: The kind is unknown or does not have one of the options, or a value is out of
            range.
    """
    if checked_kind(options) != "ema":
        return None
    given: dict[str, Any] = {name: value for name, value in options.items() if name != "kind"}
    return EMAUpdate(**given)
