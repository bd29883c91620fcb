"""Compares greedy decoding with transformers' `generate`, on the same prompts, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from sdft.model.pretrained import LoadedModel
from sdft.rollout.generate import neutral_generation_config
from sdft.rollout.in_place import sample
from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.types import TokenIds


def decode_ratio(
    loaded: LoadedModel, prompts: Sequence[TokenIds], num_tokens: int, num_pairs: int
) -> dict[str, float]:
    """Medians over the pairs of `generate`'s CPU and wall-clock seconds over ours.

    Args:
        loaded: The model.
        prompts: B token-id lists, each answered with exactly ``num_tokens`` tokens.
        num_tokens: T.
        num_pairs: Measured pairs, after one that is not.

    Raises:
        RuntimeError: The two completed a prompt differently.
    """
    loaded.model.eval()
    pairs = []
    for _ in range(num_pairs + 1):
        our_seconds, our_tokens = timed(lambda: ours(loaded.model, prompts, num_tokens))
        their_seconds, their_tokens = timed(lambda: generated(loaded, prompts, num_tokens))
        if our_tokens != their_tokens:
            rows = [i for i, each in enumerate(our_tokens) if each != their_tokens[i]]
            raise RuntimeError(f"greedy completions differ from generate's in rows {rows}")
        pairs.append([b / a for a, b in zip(our_seconds, their_seconds, strict=True)])
    cpu, wall = (statistics.median(each) for each in zip(*pairs[1:], strict=True))
    return {"cpu_ratio": cpu, "wall_ratio": wall}


def timed(decode: Callable[[], list[TokenIds]]) -> tuple[tuple[float, float], list[TokenIds]]:
    """CPU and wall-clock seconds, and the completions."""
    wall, cpu = time.perf_counter(), time.process_time()
    completions = decode()
    return (time.process_time() - cpu, time.perf_counter() - wall), completions


def ours(model: PreTrainedModel, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
    """The in-place engine without demonstrations as drafts."""
    settings = SamplingSettings(num_tokens, temperature=0.0)
    request = RolloutRequest(prompts, settings, end_ids=frozenset())
    return list(sample(model, request).completions)


def generated(loaded: LoadedModel, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
    """Transformers' `generate` on prompts padded on the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    with neutral_generation_config(loaded.model):
        found = loaded.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return found[:, width:].tolist()
