"""What a rollout engine is asked for: prompts, sampling settings, seeds and drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdft.rollout.stopping import Decode, Ending
from sdft.types import TokenIds


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How completions are drawn.

    Args:
        max_new_tokens: Length limit of a completion, end-of-turn token included.
        temperature: Logits are divided by it; 0 takes the most likely token (greedy).
        top_p: Keep the smallest set of tokens with at least this probability; 1 keeps all.
        top_k: Keep the k most likely tokens; 0 keeps all.
        min_p: Mask tokens less likely than this fraction of the most likely one; 0 keeps all.
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
    """A request for one completion per prompt.

    Args:
        prompts: B non-empty token-id lists.
        settings: Length limit, temperature, truncation, stop strings.
        end_ids: Tokens that end a completion; they are part of it.
        seeds: B seeds of the sampling noise, one for each completion; not needed when greedy.
        drafts: B guesses of the completions; they save forward passes and do not change the
            distribution of the completions. An engine may ignore them.
        decode: Turns token ids into text that includes special tokens; only needed for stop
            strings.

    Raises:
        ValueError: A prompt is empty, a seed that sampling needs is missing, or there are stop
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
        _ = self.ending  # raises an error for stop strings without decode

    @property
    def ending(self) -> Ending:
        """Decides where a completion ends."""
        return Ending(self.end_ids, self.settings.stop_strings, self.decode)

    def noise(self) -> Tensor | None:
        """Random numbers in [0, 1), (B, max_new_tokens), one per token; None when greedy."""
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
        return torch.stack(rows)
