"""Measures the machine's peak rates: matrix products, and reading memory.

    python benchmarks/peak.py [--threads N]

The ceilings that the seconds in docs/cost.md are compared with, in float32: products of many rows,
as in scoring, and of few rows, as in decoding, with the weights of a decoder of SmolLM2-135M's
size; and reading these weights. The best of several repetitions counts. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

WIDTH, INNER = 576, 1536
NUM_MATRICES = 120  # 424 MB, many times any cache
ROWS = {"scoring_gflops": 512, "decoding_gflops": 4}
REPETITIONS = 7


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few matrices, twice")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    number, repetitions = (4, 2) if arguments.quick else (NUM_MATRICES, REPETITIONS)
    weights = [torch.randn(INNER, WIDTH) for _ in range(number)]
    size = sum(weight.nbytes for weight in weights)
    found = {}
    for name, rows in ROWS.items():
        inputs = torch.randn(rows, WIDTH)
        seconds = best(lambda x=inputs: products(x, weights), repetitions)
        found[name] = 2 * rows * WIDTH * INNER * number / seconds / 1e9
        if rows == ROWS["decoding_gflops"]:
            found["decoding_gb_per_s"] = size / seconds / 1e9
    target = torch.empty_like(weights[0])
    seconds = best(lambda: copies(weights, target), repetitions)
    found["read_gb_per_s"] = size / seconds / 1e9
    print(json.dumps({name: round(value, 1) for name, value in found.items()}))


def products(rows: Tensor, weights: list[Tensor]) -> None:
    """Every weight once."""
    for weight in weights:
        torch.nn.functional.linear(rows, weight)


def copies(weights: list[Tensor], target: Tensor) -> None:
    """Read every weight once; the output stays in the cache."""
    for weight in weights:
        target.copy_(weight)


def best(work: Callable[[], None], repetitions: int) -> float:
    """Minimum seconds over a few repetitions, after one that is not measured."""
    work()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
