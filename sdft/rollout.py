"""From prompts to completions: sampling from a causal language model (algorithm, step 2).

The training weights are run in place: evaluation and inference mode, one prefill of the
left-padded prompts, then a key-value cache; rows leave the batch as they end. All sampling
noise comes from seeds of its own, so rollouts neither read nor disturb the global random state.

Every token of a completion has a uniform number of its own, drawn before the first pass, that
picks it from the model's distribution. What a row says is therefore a function of the weights,
its prompt and its seed, whatever rows it shares its passes with.

A draft, a guess of the completion, lets one forward pass read several tokens. At every drafted
position a token is drawn from the model's own distribution; draws are kept up to and including
the first that differs from the draft, because each of them was conditioned on exactly the tokens
before it. So a draft saves passes and changes nothing else. In self-distillation the
demonstration is a natural draft: the better the student has learnt it, the fewer passes a rollout
takes.
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
from sdft.growing_cache import grouped_heads
from sdft.packing import can_pack, packed_linears
from sdft.sharding import whole_weights
from sdft.types import Rollout, TokenIds

# Packing costs about what it saves in this many steps, so a rollout that takes so many is likely
# to gain from it.
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


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """What an engine is asked for: one completion per prompt.

    Args:
        prompts: B non-empty token-id lists.
        settings: Length limit, temperature, truncation, stop strings.
        end_ids: Tokens that end a completion; they are part of it.
        seeds: B seeds of the sampling noise, one for each completion; not needed when greedy.
        drafts: B guesses of the completions; they save forward passes and do not move the
            distribution of the completions. An engine may ignore them.
        decode: Token ids to text, special tokens spelled out; needed for stop strings alone.

    Raises:
        ValueError: A prompt is empty, or has no seed where sampling needs one, or there are stop
            strings without decode.
    """

    prompts: Sequence[TokenIds]
    settings: SamplingSettings
    end_ids: frozenset[int]
    seeds: Sequence[int] | None = None
    drafts: Sequence[TokenIds] | None = None
    decode: Decode | None = None

    def __post_init__(self) -> None:
        if self.settings.temperature > 0 and len(self.seeds or ()) != len(self.prompts):
            raise ValueError(
                "sampling at a temperature above 0 needs a seed for every prompt: "
                f"{len(self.prompts)} prompts, {len(self.seeds or ())} seeds"
            )
        for index, prompt in enumerate(self.prompts):
            if not prompt:
                raise ValueError(f"prompt {index} has no tokens")
        _ = self.ending  # refuses stop strings that nobody can read

    @property
    def ending(self) -> Ending:
        """Where a completion ends."""
        return Ending(self.end_ids, self.settings.stop_strings, self.decode)

    def noise(self, device: torch.device) -> Tensor | None:
        """(B, T) numbers in [0, 1), one for every token a rollout may have; None when greedy."""
        if self.settings.temperature == 0:
            return None
        rows = [
            torch.rand(
                self.settings.max_new_tokens,
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.float64,
            )
            for seed in self.seeds or ()
        ]
        return torch.stack(rows).to(device)


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


def sample(model: PreTrainedModel, request: RolloutRequest) -> Rollout:
    """Draw one completion per prompt.

    Args:
        model: Causal language model; its weights are read in place.
        request: B prompts and how to continue them.

    Returns:
        B completions in the order of the prompts.
    """
    prompts, settings, noise = request.prompts, request.settings, request.noise(model.device)
    drafts = request.drafts or [[]] * len(prompts)
    decoding = Decoding(model, prompts, drafts, settings.max_new_tokens, request.ending)
    with (
        whole_weights(model),
        torch.inference_mode(),
        evaluation_mode(model),
        grouped_heads(model.device),
        ExitStack() as packing,
    ):
        logits = decoding.prefill()
        for num_steps in count():
            chosen = None if noise is None else noise[decoding.read_rows, decoding.read_offsets]
            decoding.append(*draw(logits, settings, chosen))
            if not decoding.active:
                break
            if num_steps == STEPS_BEFORE_PACKING and can_pack(model):
                packing.enter_context(packed_linears(model))
            logits = decoding.step()
    return decoding.rollout()


def draw(logits: Tensor, settings: SamplingSettings, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    Args:
        logits: (M, V) next-token logits.
        settings: Temperature and truncation.
        noise: (M,) numbers in [0, 1); each picks the token where the distribution function of
            its row passes it. None when greedy.

    Returns:
        (M,) token ids and (M,) their log-probabilities under the truncated, renormalised
        distribution they were drawn from. Greedy tokens have log-probability 0.
    """
    logits = logits.float()
    if noise is None:
        return logits.argmax(-1), torch.zeros(len(logits), device=logits.device)
    logits = _truncate(logits / settings.temperature, settings)
    logits -= logits.amax(-1, keepdim=True)
    # Summed in float64, so that tokens of the smallest probability keep theirs.
    cumulative = logits.exp().cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, noise.to(total)[:, None] * total, right=True)
    tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens.squeeze(1), logits.gather(1, tokens).squeeze(1) - total.squeeze(1).log().float()


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
