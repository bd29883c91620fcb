"""Divergences by name, with their options."""

from __future__ import annotations

from typing import Any, Literal

from sdft.keyword_options import check_options
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
    check_options(DIVERGENCES[name], options, f"divergence {name}")
    return DIVERGENCES[name](**options)
