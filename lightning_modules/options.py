"""Checks of a method's options; errors name the option, its value and the fix."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from sdft.keyword_options import with_defaults
from sdft.loss.divergence_registry import DIVERGENCES, make_divergence
from sdft.loss.divergences import Divergence
from sdft.loss.reductions import REDUCTIONS
from sdft.model.teacher_options import EMAUpdate, TeacherOptions, ema_update
from sdft.rollout.engine_registry import ENGINES
from sdft.rollout.request import SamplingSettings
from sdft.runs.run_settings import Settings
from sdft.stages import StagePlan

logger = logging.getLogger(__name__)


def require(holds: bool, name: str, value: object, expected: str) -> None:
    """Refuse an option's value.

    Raises:
        ValueError: ``holds`` is false; names the option, its value and what is expected.
    """
    if not holds:
        raise ValueError(f"model.{name} is {value}; it must be {expected}")


def require_above(bound: float, **options: float) -> None:
    """Refuse options that are not above ``bound``."""
    for name, value in options.items():
        require(value > bound, name, value, f"above {bound}")


def require_at_least(least: float, **options: float | None) -> None:
    """Refuse options below ``least``; None is not a number and passes."""
    for name, value in options.items():
        require(value is None or value >= least, name, value, f"{least} or more")


def check_reduction(name: str) -> None:
    """Refuse an unknown reduction."""
    require(name in REDUCTIONS, "reduction", name, " or ".join(REDUCTIONS))


def check_teacher(options: TeacherOptions) -> None:
    """Refuse teacher options that are not a mapping, do not go together or are out of range."""
    name = options if isinstance(options, str) else "ema"
    require(isinstance(options, Mapping), "teacher", options, f"a mapping such as {{kind: {name}}}")
    ema_update(options)


NEED_OWN_DRAWS = ("sampled_token", "rao_blackwellised")
"""Divergences that are correct only for completions drawn from the student."""


def check_fraction(fraction: float, *, own_draws_only: bool) -> None:
    """Refuse an impossible fraction of on-policy rows.

    Args:
        fraction: From 0 to 1.
        own_draws_only: The method, divergence or importance weights need the student's own draws.
    """
    require(0.0 <= fraction <= 1.0, "on_policy_fraction", fraction, "from 0 to 1")
    require(
        fraction == 1.0 or not own_draws_only,
        "on_policy_fraction",
        fraction,
        "1 with this method, or with sampled_token, rao_blackwellised or importance_clip: "
        "demonstrations are not the student's own draws",
    )


def checked_divergence(
    name: str,
    options: dict[str, Any],
    sampling: SamplingSettings,
    importance_clip: float | None,
) -> Divergence:
    """The divergence of a module's options.

    Args:
        name: One of :data:`sdft.loss.divergence_registry.DIVERGENCES`.
        options: The divergence's own.
        sampling: How rollouts are sampled; it must agree with the objective's mathematics.
        importance_clip: Largest importance weight; None for none.

    Raises:
        ValueError: Unknown divergence or option, a value out of its range, or rollouts that are
            not drawn from a distribution the objective knows.
    """
    require(name in DIVERGENCES, "divergence", name, "one of " + ", ".join(DIVERGENCES))
    try:
        divergence = make_divergence(name, **options)
    except ValueError as error:
        raise ValueError(f"model.divergence_options {options}: {error}") from error
    clip = importance_clip
    whole = sampling.top_p == 1.0 and sampling.top_k == 0 and sampling.min_p == 0.0
    require(
        not divergence.prefix_score or (whole and sampling.temperature == 1.0 and clip is None),
        "divergence",
        name,
        "used with temperature 1, top_p 1, top_k 0, min_p 0 and importance_clip null: its "
        "prefix score is that of completions drawn from the student itself",
    )
    require(
        clip is None or (1.0 <= clip < math.inf and whole and sampling.temperature > 0.0),
        "importance_clip",
        clip,
        "at least 1 and used with top_p 1, top_k 0, min_p 0 and a temperature above 0: a "
        "truncated distribution has no ratio to the student's",
    )
    return divergence


def warn_of_short_stages(plan: StagePlan, warmup_steps: int) -> None:
    """Warn of stages that end before the learning rate has reached its peak."""
    for stage, task in enumerate(plan.tasks):
        steps = plan.steps_in_stage(stage)
        if plan.first_stage <= stage and steps <= warmup_steps:
            logger.warning(
                "stage %d (%s) is warm-up to its end (optimizer steps: %d), since "
                "model.warmup_steps is %d; lower it or data.batch_size, or raise "
                "data.epochs_per_stage",
                stage + 1,
                task,
                steps,
                warmup_steps,
            )


def resolved(settings: Settings) -> Settings:
    """A run's settings, with the defaults of the options that are given as a mapping.

    Nothing is added to an unknown kind, which another version of the code may have written.
    """
    result = dict(settings)
    teacher = settings.get("model.teacher")
    if isinstance(teacher, Mapping) and teacher.get("kind", "ema") == "ema":
        result["model.teacher"] = {"kind": "ema", **with_defaults(EMAUpdate, teacher)}
    kinds_of: dict[str, Mapping[Any, Any]] = {"divergence": DIVERGENCES, "rollout_engine": ENGINES}
    for option, kinds in kinds_of.items():
        kind, name = kinds.get(settings.get(f"model.{option}")), f"model.{option}_options"
        if kind is not None:
            result[name] = with_defaults(kind, settings.get(name) or {})
    return result
