"""Chooses the other rows of a task that the teacher is shown before a row's demonstration.

The choice is made once per task and depends on (seed, task, row) or on the rows' texts alone, so
that a resumed run shows the same examples.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import Literal, get_args

import torch
from torch import Tensor

from sdft.seeds import Stream, mix_seed
from sdft.types import Demonstration

DemonstrationChoice = Literal["random", "retrieved"]
CHOICES = get_args(DemonstrationChoice)
_WORD = re.compile(r"\w+")
_BLOCK = 128  # rows whose similarities are held at a time


def check_choice(choice: str) -> None:
    """Raise ValueError unless ``choice`` is one of :data:`CHOICES`."""
    if choice not in CHOICES:
        raise ValueError(f"demonstration_choice is {choice!r}; it must be {' or '.join(CHOICES)}")


def choose_examples(
    rows: Sequence[Demonstration], num_examples: int, choice: str, seed: int
) -> dict[str, tuple[Demonstration, ...]]:
    """Other rows for every row, never one with the same question, and no question twice.

    Args:
        rows: All training rows of one task.
        num_examples: Examples per row.
        choice: ``random``, or ``retrieved``: the nearest by TF-IDF cosine, the nearest last.
        seed: Seed of the random choice.

    Returns:
        Id of a row -> its examples.

    Raises:
        ValueError: The choice is unknown, or there are too few rows with other questions.
    """
    check_choice(choice)
    questions = [" ".join(row.question.casefold().split()) for row in rows]
    num_others = len(set(questions)) - 1
    if num_others < num_examples:
        raise ValueError(
            f"task {rows[0].task!r}: has {num_others} training rows with other questions than a "
            f"row's own; data.num_demonstrations is {num_examples + 1}, it can be at most "
            f"{num_others + 1}"
        )
    ranked: Iterator[Iterable[int]]
    ranked = _nearest_first(questions) if choice == "retrieved" else _drawn(rows, seed)
    examples = {}
    for index, candidates in enumerate(ranked):
        others = _distinct(candidates, questions, questions[index])
        chosen = [rows[other] for other in islice(others, num_examples)]
        examples[rows[index].id] = tuple(reversed(chosen))
    return examples


def _distinct(candidates: Iterable[int], questions: Sequence[str], own: str) -> Iterator[int]:
    seen = {own}
    for candidate in candidates:
        if questions[candidate] not in seen:
            seen.add(questions[candidate])
            yield candidate


def _drawn(rows: Sequence[Demonstration], seed: int) -> Iterator[Iterable[int]]:
    """For each row, an endless stream of indices, drawn by (seed, task, row)."""
    for row in rows:
        noise = random.Random(mix_seed(Stream.SHOWN_DEMONSTRATIONS, seed, row.task, row.id))
        yield map(noise.randrange, repeat(len(rows)))


def _nearest_first(texts: Sequence[str]) -> Iterator[Iterable[int]]:
    """For each text, the indices of all texts by decreasing similarity, ties in order."""
    vectors = tfidf_vectors(texts)
    for start in range(0, len(texts), _BLOCK):
        block = vectors.index_select(0, torch.arange(start, min(start + _BLOCK, len(texts))))
        # Rounded, so that the order of summation does not break ties.
        similarity = torch.sparse.mm(vectors, block.to_dense().T).T.round(decimals=9)
        yield from similarity.argsort(dim=-1, descending=True, stable=True).tolist()


def tfidf_vectors(texts: Sequence[str]) -> Tensor:
    """Unit vectors whose dot product is the TF-IDF cosine of two texts.

    A word that occurs n times in a text and in d of N texts weighs n · log(N / d): words of
    every text, such as a task's instruction, weigh nothing.

    Args:
        texts: N texts.

    Returns:
        (N, W), sparse, float64, over the W different words; zero where a text has no word of
        its own.
    """
    counts = [Counter(_WORD.findall(text)) for text in texts]
    num_texts_with = Counter(word for count in counts for word in count)
    column = {word: index for index, word in enumerate(num_texts_with)}
    rows, columns, values = [], [], []
    for row, count in enumerate(counts):
        weights = {
            word: number * math.log(len(texts) / num_texts_with[word])
            for word, number in count.items()
        }
        length = math.hypot(*weights.values()) or 1.0
        rows += [row] * len(weights)
        columns += [column[word] for word in weights]
        values += [weight / length for weight in weights.values()]
    return torch.sparse_coo_tensor(
        torch.tensor([rows, columns], dtype=torch.long).reshape(2, -1),
        torch.tensor(values, dtype=torch.float64),
        (len(texts), len(column)),
        check_invariants=True,
    ).coalesce()
