"""Measures the cost of a training step by completion length and batch size, phase by phase.

    python benchmarks/linear_cost.py [--quick] [--threads N] [--image PATH]

Steps of SDFT on a random model of 4.7 million weights, prompts of 32 words, forced completion
lengths: from 16 to 1,024 tokens in batches of eight, and batches of 1 to 64 rows of 64 tokens.
Seconds are the minimum over the measured steps, phase by phase: other load on the machine only
adds to them. The figure has logarithmic axes, on which cost that grows linearly is a line of slope
1. The printed slope is a least-squares fit to the upper half of the points, where the fixed cost of
a step no longer matters. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from stepping import works
from stepping.sides import compare, ours

from sdft.evaluation.figures import COLOURS

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
LENGTH_OF_BATCHES = 64
QUICK = (4, 8, 16)
PHASES = ("sample", "teacher", "student", "backward", "optimizer", "teacher_update")
Seconds = dict[str, float]


def main() -> None:
    """Measure both series and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, three sizes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each size")
    parser.add_argument("--image", type=Path, default=Path("docs/images/linear_cost.png"))
    arguments = parser.parse_args()
    lengths, batch_sizes = (QUICK, QUICK) if arguments.quick else (LENGTHS, BATCH_SIZES)
    with tempfile.TemporaryDirectory() as name:
        measure = Measure(Path(name), arguments)
        by_length = {each: measure(each, works.BATCH_SIZE) for each in lengths}
        by_batch = {each: measure(LENGTH_OF_BATCHES, each) for each in batch_sizes}
    slopes = {"length": slope(by_length), "batch": slope(by_batch)}
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, by_length, f"completion tokens, {works.BATCH_SIZE} rows", slopes["length"])
    draw(right, by_batch, f"rows, {LENGTH_OF_BATCHES} completion tokens each", slopes["batch"])
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    arguments.image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.image, dpi=150)
    print(json.dumps({f"{name}_slope": round(value, 3) for name, value in slopes.items()}))


class Measure:
    """Seconds of a step by phase.

    Args:
        folder: For models and jobs.
        arguments: The command line.
    """

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self._folder, self._arguments = folder, arguments

    def __call__(self, length: int, batch_size: int) -> Seconds:
        """The minimum over a few steps; prints a line."""
        quick, steps = self._arguments.quick, 1 if self._arguments.quick else self._arguments.steps
        shape = works.TINY if quick else works.SMALL
        model = Path(tempfile.mkdtemp(dir=self._folder))
        work = works.random_work(model, shape, (steps + 1) * batch_size, length)
        work = replace(work, batch_size=batch_size)
        taken = compare(self._folder, work, [ours()], steps, self._arguments.threads).ours
        found = {phase: min(step["phases"][phase] for step in taken) for phase in PHASES}
        found["step"] = min(step["wall_s"] for step in taken)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        print(f"{batch_size} rows of {length} tokens: {shown}", flush=True)
        return found


def slope(series: Mapping[int, Seconds]) -> float:
    """Slope of a step's seconds over the size, in logarithms, for the upper half of the sizes."""
    sizes = list(series)[len(series) // 2 :]
    seconds = [math.log(series[size]["step"]) for size in sizes]
    return statistics.linear_regression([math.log(size) for size in sizes], seconds).slope


def draw(axes: Axes, series: Mapping[int, Seconds], label: str, found: float) -> None:
    """One panel: the step and its phases over the size."""
    sizes: Sequence[int] = list(series)
    for colour, name in zip(COLOURS, PHASES, strict=False):
        seconds = [series[size][name] for size in sizes]
        axes.plot(sizes, seconds, color=colour, marker="o", markersize=3, linewidth=1, label=name)
    seconds = [series[size]["step"] for size in sizes]
    axes.plot(sizes, seconds, color="black", linewidth=2.2, label="step")
    axes.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds")
    axes.set_title(f"a step: slope {found:.2f} in the upper half", fontsize=10)
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
