"""Divergences by name, with their options."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from sdft.loss.divergences import Divergence, ForwardKL, JensenShannon, RaoBlackwellised, ReverseKL
from sdft.loss.partial_divergences import SampledToken, TopKStudent, TopKTeacher

DivergenceName = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "sampled_token",
    "rao_blackwellised",
    "topk_teacher",
    "topk_student",
]
DIVERGENCES: dict[DivergenceName, type[Divergence]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": JensenShannon,
    "sampled_token": SampledToken,
    "rao_blackwellised": RaoBlackwellised,
    "topk_teacher": TopKTeacher,
    "topk_student": TopKStudent,
}


def make_divergence(name: DivergenceName, **options: Any) -> Divergence:
    """Create a divergence by name.

    Args:
        name: A key of :data:`DIVERGENCES`.
        options: Fields of that divergence, such as ``beta`` of "jsd".

    Raises:
        ValueError: The name or an option is unknown, or an option has the wrong type or is out of
            range.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"unknown divergence {name!r}; valid: {', '.join(DIVERGENCES)}")
    kind = DIVERGENCES[name]
    defaults = {field.name: field.default for field in fields(kind)}
    for option, value in options.items():
        if option not in defaults:
            listed = ", ".join(defaults) or "none"
            raise ValueError(f"divergence {name!r} has no option {option!r}; its options: {listed}")
        _check_type(name, option, value, defaults[option])
    return kind(**options)


def _check_type(name: str, option: str, value: object, default: object) -> None:
    """Require a value of the same type as its default; a default of None means a number."""
    if default is None and value is None:
        return
    wanted: type = float if default is None else type(default)
    accepted = (float, int) if wanted is float else (wanted,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise ValueError(
            f"option {option!r} of divergence {name!r} is {value!r}; it takes a {wanted.__name__}"
        )
