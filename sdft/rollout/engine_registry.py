"""Rollout engines by name. They turn prompts into completions for training and evaluation.

Every engine has the interface of ``in_place``, the default, and takes the same requests. They
differ in where the tokens are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from transformers import PreTrainedModel

from sdft.keyword_options import check_options
from sdft.rollout.continuous_batching import ContinuousBatchingEngine
from sdft.rollout.generate import GenerateEngine
from sdft.rollout.in_place import InPlaceEngine
from sdft.rollout.request import RolloutRequest
from sdft.rollout.vllm.vllm_engine import VLLMEngine
from sdft.types import Rollout


class Engine(Protocol):
    """The interface of an engine."""

    def __call__(self, model: PreTrainedModel, request: RolloutRequest) -> Rollout:
        """Return B completions in the order of the prompts."""

    def prepared(self, model: PreTrainedModel) -> AbstractContextManager[None]:
        """A context in which calls are no collectives; entering is one if weights are sharded."""


EngineName = Literal["in_place", "generate", "continuous_batching", "vllm"]
ENGINES: dict[EngineName, Callable[..., Engine]] = {
    "in_place": InPlaceEngine,
    "generate": GenerateEngine,
    "continuous_batching": ContinuousBatchingEngine,
    "vllm": VLLMEngine,
}


def make_engine(name: EngineName, **options: Any) -> Engine:
    """Create an engine by name.

    Args:
        name: in_place, generate, continuous_batching or vllm.
        options: Arguments of the engine's class.

    Returns:
        The engine, ready to sample.

    Raises:
        ValueError: The name or an option is unknown, or an option is missing, of the wrong type or
            out of range.
    """
    if name not in ENGINES:
        raise ValueError(f"rollout_engine is {name}; it must be {' or '.join(ENGINES)}")
    check_options(ENGINES[name], options, f"rollout_engine {name}")
    return ENGINES[name](**options)
