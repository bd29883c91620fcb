"""From prompts to completions: sampling from a causal language model (algorithm, step 2).

The training weights are run in place: evaluation and inference mode, one prefill of the
left-padded prompts, then one token at a time with a key-value cache; rows leave the batch as
they end. All sampling noise comes from a generator of its own, so rollouts neither read nor
disturb the global random state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from sdft.types import Rollout, TokenIds


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How completions are drawn.

    Args:
        max_new_tokens: Longest completion, end-of-turn token included.
        temperature: Logits are divided by it; 0 takes the most likely token (greedy).
        top_p: Keep the smallest set of tokens with at least this probability; 1 keeps all.
        top_k: Keep the k most likely tokens; 0 keeps all.

    Raises:
        ValueError: A value is out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        checks = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
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
) -> Rollout:
    """Draw one completion per prompt.

    Args:
        model: Causal language model; its weights are read in place.
        prompts: B non-empty token-id lists.
        settings: Length limit, temperature, top-p, top-k.
        end_ids: Tokens that end a completion; they are part of it.
        generator: Source of the sampling noise, on the model's device; not needed when greedy.

    Returns:
        B completions in the order of the prompts.

    Raises:
        ValueError: A prompt is empty, or sampling was asked for without a generator.
    """
    if settings.temperature > 0 and generator is None:
        raise ValueError("sampling at a temperature above 0 needs a generator")
    if any(not prompt for prompt in prompts):
        raise ValueError(f"prompt {[bool(p) for p in prompts].index(False)} has no tokens")
    decoding = _Decoding(prompts, model.device)
    with torch.inference_mode(), evaluation_mode(model):
        logits = decoding.prefill(model)
        for _ in range(settings.max_new_tokens):
            tokens, logprobs = draw(logits, settings, generator)
            decoding.append(tokens, logprobs, end_ids)
            if not decoding.active or decoding.longest == settings.max_new_tokens:
                break
            logits = decoding.step(model)
    return decoding.rollout(end_ids)


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
    """Ban every token outside of top-k and of the top-p nucleus; (B, V) to (B, V)."""
    if 0 < settings.top_k < logits.shape[-1]:
        threshold = logits.topk(settings.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token stays while the probability before it has not reached top_p.
        banned = probabilities.cumsum(-1) - probabilities >= settings.top_p
        logits = logits.masked_fill(banned.scatter(1, order, banned), -torch.inf)
    return logits


class _Decoding:
    """The rows still being decoded, their cache, and what every row has produced."""

    def __init__(self, prompts: Sequence[TokenIds], device: torch.device) -> None:
        self._prompts = prompts
        self._device = device
        self._completions: list[TokenIds] = [[] for _ in prompts]
        self._logprobs: list[list[float]] = [[] for _ in prompts]
        self.active = list(range(len(prompts)))
        self.longest = 0

    def prefill(self, model: PreTrainedModel) -> Tensor:
        """Read the prompts; (B, V) logits of the first completion token."""
        width = max(map(len, self._prompts))
        pads = [width - len(prompt) for prompt in self._prompts]
        ids = torch.tensor(
            [[0] * pad + list(prompt) for pad, prompt in zip(pads, self._prompts, strict=True)],
            device=self._device,
        )
        pad = torch.tensor(pads, device=self._device)
        columns = torch.arange(width, device=self._device)
        self._mask = (columns >= pad[:, None]).long()
        self._positions = (columns - pad[:, None]).clamp(min=0)
        self._ragged = any(pads)
        self._cache = DynamicCache(config=model.config)
        return self._forward(model, ids)

    def step(self, model: PreTrainedModel) -> Tensor:
        """Read the last drawn token of every active row; (B_active, V) logits."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self._positions = self._positions[:, -1:] + 1
        return self._forward(model, self._last[:, None])

    def _forward(self, model: PreTrainedModel, ids: Tensor) -> Tensor:
        output = model(
            input_ids=ids,
            attention_mask=self._mask if self._ragged else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def append(self, tokens: Tensor, logprobs: Tensor, end_ids: frozenset[int]) -> None:
        """Record one drawn token per active row and drop the rows that ended."""
        self.longest += 1
        drawn = tokens.tolist()
        for row, token, logprob in zip(self.active, drawn, logprobs.tolist(), strict=True):
            self._completions[row].append(token)
            self._logprobs[row].append(logprob)
        keep = [index for index, token in enumerate(drawn) if token not in end_ids]
        self._last = tokens
        if len(keep) < len(drawn):
            self._keep_rows(keep)

    def _keep_rows(self, keep: list[int]) -> None:
        self.active = [self.active[index] for index in keep]
        if not keep:
            return
        rows = torch.tensor(keep, device=self._device)
        self._last, self._mask, self._positions = (
            tensor.index_select(0, rows) for tensor in (self._last, self._mask, self._positions)
        )
        self._cache.batch_select_indices(rows)

    def rollout(self, end_ids: frozenset[int]) -> Rollout:
        """What every row has produced."""
        return Rollout(
            completions=self._completions,
            logprobs=self._logprobs,
            ended=[completion[-1] in end_ids for completion in self._completions],
        )
