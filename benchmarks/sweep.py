"""Prints the command of every point of a grid, one a line.

    python benchmarks/sweep.py configs/paper/sweep_skills.yaml \
        --config configs/paper/qwen7b.yaml --config configs/paper/science.yaml --seeds 1 2 3

Each command has a run directory of its own, named by its values; run them as the machines allow.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def commands(
    grid: Mapping[str, Sequence[Any]],
    configs: Sequence[str],
    seeds: Sequence[int],
    folder: str = "runs",
) -> Iterator[list[str]]:
    """Arguments of ``train.py`` for every point of the grid and every seed.

    Args:
        grid: Option -> the values it takes.
        configs: Configurations that every point shares.
        seeds: One run for each of them.
        folder: Where the run directories go.
    """
    shared = [argument for config in configs for argument in ("--config", config)]
    for values in itertools.product(*grid.values()):
        options = [
            argument
            for option, value in zip(grid, values, strict=True)
            for argument in (f"--{option}", str(value))
        ]
        for seed in seeds:
            name = "_".join(map(str, [Path(configs[-1]).stem, *values, f"seed{seed}"]))
            seeded = ["--seed_everything", str(seed), "--run_dir", f"{folder}/{name}"]
            yield ["fit", *shared, *options, *seeded]


def main() -> None:
    """Read the grid and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grid", type=Path, help="YAML file: option -> list of values")
    parser.add_argument("--config", action="append", required=True, help="may be given again")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    grid = yaml.safe_load(arguments.grid.read_text("utf-8"))
    for command in commands(grid, arguments.config, arguments.seeds):
        print(shlex.join(["python", "train.py", *command]))


if __name__ == "__main__":
    main()
