"""The ``continuous_batching`` engine: transformers' paged decoding on a GPU."""

from __future__ import annotations

from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel

from sdft.model.modes import evaluation_mode
from sdft.model.sharding import gathered_weights
from sdft.rollout.generate import neutral_generation_config
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.rollout.sampling import rollout_of
from sdft.types import Rollout


class ContinuousBatchingEngine:
    """Sample with transformers' ``generate_batch``: rows join and leave a paged cache.

    The cache is freed after each call and prompts share no pages, so that nothing computed with
    older weights is ever read. Log-probabilities are those ``generate_batch`` reports, under the
    distribution it drew from. It does not support stop strings, so rows are cut afterwards. Drafts
    are not used.

    Args:
        max_memory_percent: Fraction of the free GPU memory that the cache may take, in (0, 1).

    Raises:
        ValueError: There is no CUDA device, or a value is out of range.
    """

    prepared = staticmethod(gathered_weights)

    def __init__(self, max_memory_percent: float = 0.5) -> None:
        if not 0 < max_memory_percent < 1:
            raise ValueError(f"max_memory_percent is {max_memory_percent}; it must be in (0, 1)")
        if not torch.cuda.is_available():
            raise ValueError(
                "rollout_engine is continuous_batching, which needs a CUDA device; there is none: "
                "use in_place"
            )
        self._max_memory_percent = max_memory_percent

    def __call__(self, model: PreTrainedModel, request: RolloutRequest) -> Rollout:
        """B completions in the order of the prompts; see :func:`sdft.rollout.in_place.sample`."""
        prompts = request.prompts
        cache = ContinuousBatchingConfig(
            return_logprobs=True,
            allow_block_sharing=False,
            max_memory_percent=self._max_memory_percent,
            seed=request.seeds[0] if request.seeds else 0,
        )
        generate_batch: Any = model.generate_batch  # a mixin of the model's own class
        # The sampler seeds the global random state.
        modes = evaluation_mode(model), neutral_generation_config(model)
        with gathered_weights(model), torch.random.fork_rng(), modes[0], modes[1]:
            results = generate_batch(
                inputs=[list(prompt) for prompt in prompts],
                generation_config=_generation_config(request.settings, request.end_ids),
                continuous_batching_config=cache,
            )
        errors = [each.error for each in results.values() if each.error is not None]
        if errors or len(results) < len(prompts):
            raise RuntimeError(
                f"generate_batch answered {len(results) - len(errors)} of {len(prompts)} prompts"
                f"{': ' + str(errors[0]) if errors else ''}; use smaller batches, another "
                "max_memory_percent, or rollout_engine in_place"
            )
        answers = [(each.generated_tokens, each.logprobs) for each in results.values()]
        return rollout_of(answers, request)


def _generation_config(settings: SamplingSettings, end_ids: frozenset[int]) -> GenerationConfig:
    """A generation config that sets every sampling option, so that no other defaults apply."""
    sampling = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p or None,
    }
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=sorted(end_ids) or -1,
        repetition_penalty=1.0,
        do_sample=settings.temperature > 0,
        **(sampling if settings.temperature > 0 else {}),
    )
