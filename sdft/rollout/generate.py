"""The ``generate`` engine: transformers' decoding loop with this package's sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from sdft.model.modes import evaluation_mode, weights_as_autocast
from sdft.model.sharding import gathered_weights
from sdft.rollout.kv_cache import fixed_cache
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.rollout.sampling import draw
from sdft.rollout.self_check import CheckedDecoder
from sdft.rollout.stopping import Ending
from sdft.types import Rollout, TokenIds


class GenerateEngine:
    """Decode with :func:`generate`, for models that the in-place engine does not support.

    Args:
        static_cache: Use a cache of fixed size; on a CUDA device transformers then compiles the
            decoding step and replays it as CUDA graphs.
    """

    prepared = staticmethod(gathered_weights)

    def __init__(self, static_cache: bool = False) -> None:
        self.static_cache = static_cache
        self._decode = CheckedDecoder({"generate": partial(generate, static_cache=static_cache)})

    def __call__(self, model: PreTrainedModel, request: RolloutRequest) -> Rollout:
        """B completions in the order of the prompts; see :func:`sdft.rollout.in_place.sample`.

        Raises:
            ValueError: The model is not decoded correctly; see :mod:`sdft.rollout.self_check`.
        """
        return self._decode(model, request)


def generate(
    model: PreTrainedModel, request: RolloutRequest, static_cache: bool = False
) -> Rollout:
    """Draw one completion per prompt with transformers' ``generate``.

    A logits processor draws every token from the raw logits, with the noise of the given seeds,
    and masks the logits of all other tokens, so that ``generate`` picks the drawn one greedily.
    Truncation and log-probabilities are therefore those of the in-place engine, the model's own
    generation settings do not apply, the global random state is not used, and only the logits of
    one step are held in memory. Drafts are not used.
    """
    prompts, settings, ending = request.prompts, request.settings, request.ending
    width = max(map(len, prompts))
    noise = request.noise()
    decode: Any = model.generate  # a mixin of the model's own class
    modes = evaluation_mode(model), neutral_generation_config(model), weights_as_autocast(model)
    fixed = fixed_cache(model, width + settings.max_new_tokens) if static_cache else {}
    with gathered_weights(model), torch.inference_mode(), modes[0], modes[1], modes[2]:
        choice = _Choice(settings, None if noise is None else noise.to(model.device))
        ids = decode(
            **_left_padded(prompts, width, model.device),
            **fixed,
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                use_cache=True,
                cache_implementation="static" if static_cache and not fixed else None,
            ),
            logits_processor=LogitsProcessorList([choice]),
            stopping_criteria=StoppingCriteriaList([_AllEnded(ending, width, len(prompts))]),
        )
    drawn = ids[:, width:].tolist()
    cuts = [ending.cut(tokens) for tokens in drawn]
    logprobs = torch.stack(choice.logprobs, dim=1).tolist()
    return Rollout(
        completions=[completion for completion, _ in cuts],
        logprobs=[
            row[: len(completion)] for row, (completion, _) in zip(logprobs, cuts, strict=True)
        ],
        ended=[ended for _, ended in cuts],
    )


@contextmanager
def neutral_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Run a block without the generation settings that came with the model.

    ``generate`` would use them for whatever a given configuration does not set: end tokens,
    penalties, truncation.
    """
    shipped = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = shipped


class _Choice(LogitsProcessor):
    """Draws every row's next token and masks the logits of all others."""

    def __init__(self, settings: SamplingSettings, noise: Tensor | None) -> None:
        self._settings = settings
        self._noise = noise
        self.logprobs: list[Tensor] = []  # one (B,) per step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Masked logits (B, V), in which only the drawn tokens are left, from logits (B, V)."""
        noise = None if self._noise is None else self._noise[:, len(self.logprobs)]
        tokens, logprobs = draw(scores, self._settings, noise)
        self.logprobs.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


class _AllEnded(StoppingCriteria):
    """Stops once every row has ended; tokens after the end of a row are cut off later."""

    def __init__(self, ending: Ending, width: int, num_rows: int) -> None:
        self._ending = ending
        self._width = width
        self._ended = [False] * num_rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        """Flags (B,) of the rows that have ended, from the ids so far, (B, L)."""
        tails = input_ids[:, self._width :][:, -self._ending.reach :].tolist()
        for row, tail in enumerate(tails):
            self._ended[row] = self._ended[row] or self._ending.ends(tail)
        return torch.tensor(self._ended, device=input_ids.device)


def _left_padded(
    prompts: Sequence[TokenIds], width: int, device: torch.device
) -> dict[str, Tensor]:
    pads = [width - len(prompt) for prompt in prompts]
    ids = [[0] * pad + prompt for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * (width - pad) for pad in pads]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
