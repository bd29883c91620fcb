"""From prompts to completions: sampling from a causal language model (algorithm, step 2).

The training weights are run in place: evaluation and inference mode, one prefill of the
left-padded prompts, then a key-value cache; rows leave the batch as they end. All sampling
noise comes from a generator of its own, so rollouts neither read nor disturb the global random
state.

A draft, a guess of the completion, lets one forward pass read several tokens. At every drafted
position a token is drawn from the model's own distribution; draws are kept up to and including
the first that differs from the draft, because each of them was conditioned on exactly the tokens
before it. The law of the completions is therefore the model's, whatever the draft. In
self-distillation the demonstration is a natural draft: the better the student has learnt it, the
fewer passes a rollout takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sdft.decoding import Decoding
from sdft.endings import Decode, Ending
from sdft.packing import can_pack, packed_linears
from sdft.sharding import whole_weights
from sdft.types import Rollout, TokenIds

# Packing the weights costs about what it saves in this many steps, so a rollout that takes so
# many is likely to gain from it.
STEPS_BEFORE_PACKING = 5


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How completions are drawn.

    Args:
        max_new_tokens: Longest completion, end-of-turn token included.
        temperature: Logits are divided by it; 0 takes the most likely token (greedy).
        top_p: Keep the smallest set of tokens with at least this probability; 1 keeps all.
        top_k: Keep the k most likely tokens; 0 keeps all.
        min_p: Ban tokens less likely than this share of the most likely one; 0 keeps all.
        stop_strings: A completion ends with the token that completes one of these texts.

    Raises:
        ValueError: A value is out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "stop_strings": (all(self.stop_strings), "texts of at least one character"),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {expected}")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode and give every submodule its own mode back.

    Generation in train mode with activation checkpointing gives wrong tokens.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def sample(
    model: PreTrainedModel,
    prompts: Sequence[TokenIds],
    settings: SamplingSettings,
    *,
    end_ids: frozenset[int],
    generator: torch.Generator | None = None,
    drafts: Sequence[TokenIds] | None = None,
    decode: Decode | None = None,
) -> Rollout:
    """Draw one completion per prompt.

    Args:
        model: Causal language model; its weights are read in place.
        prompts: B non-empty token-id lists.
        settings: Length limit, temperature, truncation, stop strings.
        end_ids: Tokens that end a completion; they are part of it.
        generator: Source of the sampling noise, on the model's device; not needed when greedy.
        drafts: B guesses of the completions; they save forward passes and do not move the
            distribution of the completions.
        decode: Token ids to text, special tokens spelled out; needed for stop strings alone.

    Returns:
        B completions in the order of the prompts.

    Raises:
        ValueError: A prompt is empty, sampling was asked for without a generator, or stop
            strings without decode.
    """
    check_request(prompts, settings, generator)
    ending = Ending(end_ids, settings.stop_strings, decode)
    drafts = drafts or [[]] * len(prompts)
    decoding = Decoding(model, prompts, drafts, settings.max_new_tokens, ending)
    gathered = whole_weights(model)
    with gathered, torch.inference_mode(), evaluation_mode(model), ExitStack() as packing:
        logits = decoding.prefill()
        for num_steps in count():
            decoding.append(*draw(logits, settings, generator))
            if not decoding.active:
                break
            if num_steps == STEPS_BEFORE_PACKING and can_pack(model):
                packing.enter_context(packed_linears(model))
            logits = decoding.step()
    return decoding.rollout()


def check_request(
    prompts: Sequence[TokenIds], settings: SamplingSettings, generator: torch.Generator | None
) -> None:
    """Refuse what no engine can answer.

    Raises:
        ValueError: A prompt is empty, or sampling was asked for without a generator.
    """
    if settings.temperature > 0 and generator is None:
        raise ValueError("sampling at a temperature above 0 needs a generator")
    if any(not prompt for prompt in prompts):
        raise ValueError(f"prompt {[bool(p) for p in prompts].index(False)} has no tokens")


def draw(
    logits: Tensor, settings: SamplingSettings, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: (B, V) next-token logits.
        settings: Temperature and truncation.
        generator: Source of the noise.

    Returns:
        (B,) token ids and (B,) their log-probabilities under the truncated, renormalised
        distribution they were drawn from. Greedy tokens have log-probability 0.
    """
    logits = logits.float()
    if settings.temperature == 0:
        return logits.argmax(-1), torch.zeros(len(logits), device=logits.device)
    logits = _truncate(logits / settings.temperature, settings)
    logprobs = logits.log_softmax(-1)
    tokens = torch.multinomial(logprobs.exp(), 1, generator=generator)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)


def _truncate(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Ban tokens outside of top-k, then of the top-p nucleus, then below min-p; (B, V)."""
    if 0 < settings.top_k < logits.shape[-1]:
        threshold = logits.topk(settings.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays while the probability before it has not reached top_p.
        banned = probabilities.cumsum(-1) - probabilities >= settings.top_p
        logits = logits.masked_fill(banned.scatter(1, order, banned), -torch.inf)
    if settings.min_p > 0:
        threshold = logits.amax(-1, keepdim=True) + math.log(settings.min_p)
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    return logits
