"""Rollout engines by name: what turns prompts into completions, for training and evaluation.

Every engine has the interface of ``in_place``, the default. They differ in where the tokens are
computed, never in what is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

from sdft.rollout.continuous_batching import ContinuousBatchingEngine
from sdft.rollout.generate import GenerateEngine
from sdft.rollout.in_place import InPlaceEngine
from sdft.rollout.request import RolloutRequest
from sdft.rollout.vllm import VLLMEngine
from sdft.types import Rollout


class Engine(Protocol):
    """What every engine is: the request's B completions, and what its calls share."""

    def __call__(self, model: PreTrainedModel, request: RolloutRequest) -> Rollout:
        """B completions in the order of the prompts."""

    def prepared(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """A block in which calls need not bring all ranks together; entering it does."""


EngineName = Literal["in_place", "generate", "continuous_batching", "vllm"]
ENGINES: dict[EngineName, Callable[..., Engine]] = {
    "in_place": InPlaceEngine,
    "generate": GenerateEngine,
    "continuous_batching": ContinuousBatchingEngine,
    "vllm": VLLMEngine,
}


def make_engine(name: EngineName, **options: Any) -> Engine:
    """Build the engine of a name.

    Args:
        name: in_place, generate, continuous_batching or vllm.
        options: The engine's own, see its class.

    Returns:
        The engine, ready to sample.

    Raises:
        ValueError: Unknown name or option, or one is missing; names the choices.
    """
    if name not in ENGINES:
        raise ValueError(f"rollout_engine is {name}; it must be {' or '.join(ENGINES)}")
    known = inspect.signature(ENGINES[name]).parameters
    for option in options:
        if option not in known:
            choices = ", ".join(known) or "none"
            raise ValueError(f"rollout_engine {name} has no option {option}; it has: {choices}")
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(f"rollout_engine {name} needs {option} in rollout_engine_options")
    return ENGINES[name](**options)
