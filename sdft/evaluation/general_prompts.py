"""General prompts: ordinary chat requests that are unrelated to the tasks in training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdft.tasks.rows import read_rows
from sdft.types import Demonstration

SHIPPED = Path(__file__).with_name("general_prompts.jsonl")


class TokenMean(NamedTuple):
    """A mean over the tokens of several sequences, and its standard error."""

    mean: float
    standard_error: float | None


def general_prompts(path: str | None, num_prompts: int) -> list[Demonstration]:
    """The first prompts of a JSON Lines file with ``id`` and ``prompt``, in its order.

    Args:
        path: The file; None for the one in this package.
        num_prompts: Number of prompts, at least 1.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row breaks the schema, or there are fewer prompts.
    """
    file = SHIPPED if path is None else Path(path)
    rows = read_rows(file, "general", needs_demonstration=False, needs_answer=False)
    if len(rows) < num_prompts:
        raise ValueError(f"{file} has {len(rows)} prompts, and {num_prompts} are asked for")
    return rows[:num_prompts]


def token_mean(sums: Sequence[float], counts: Sequence[int]) -> TokenMean:
    """Mean over tokens with its standard error over sequences (the ratio estimator's).

    Sequences are assumed to be independent; the tokens of one sequence are not.

    Args:
        sums: B sums over the tokens of each sequence.
        counts: B numbers of tokens.

    Returns:
        The mean and its error, which is None for a single sequence.
    """
    total = sum(counts)
    mean = math.fsum(sums) / total
    n = len(sums)
    if n < 2:
        return TokenMean(mean, None)
    spread = math.fsum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return TokenMean(mean, math.sqrt(n / (n - 1) * spread) / total)
