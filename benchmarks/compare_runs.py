"""Accuracy matrices of several runs, averaged over seeds, as Markdown tables.

    python benchmarks/compare_runs.py runs/sdft-1 runs/sdft-2 runs/sdft-3 runs/sft-1 …

Runs with the same method and tasks are averaged; spread is the smallest and largest run. The last
line is JSON with the same figures. ``--quick`` reads the runs' files all the same: nothing here
takes time.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Run = dict[str, Any]


def main() -> None:
    """Read the runs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--quick", action="store_true", help="accepted for uniformity")
    groups: dict[str, list[Run]] = {}
    for folder in parser.parse_args().runs:
        run = json.loads((folder / "retention.json").read_text(encoding="utf-8"))
        groups.setdefault(run["method"], []).append(run)
    tasks = {tuple(run["tasks"]) for runs in groups.values() for run in runs}
    if len(tasks) != 1:
        raise SystemExit(f"these runs learned different sequences: {sorted(tasks)}")
    for method, runs in groups.items():
        print(matrix_table(method, runs))
    print(summary_table(groups))
    figures = {
        method: {name: [read(run) for run in runs] for name, read in SUMMARY.items()}
        for method, runs in groups.items()
    }
    print(json.dumps(figures))


def learned(run: Run) -> float:
    """Mean gain of a task over the untrained model by its own stage."""
    first = run["rows"][0]["accuracy"]
    gains = [run["rows"][k + 1]["accuracy"][t] - first[t] for k, t in enumerate(run["tasks"])]
    return statistics.fmean(gains)


def least_learned(run: Run) -> float:
    """The smallest of those gains."""
    first = run["rows"][0]["accuracy"]
    return min(run["rows"][k + 1]["accuracy"][t] - first[t] for k, t in enumerate(run["tasks"]))


def average_forgetting(run: Run) -> float:
    """Mean forgetting over the tasks that could be forgotten."""
    return statistics.fmean(value for value in run["forgetting"].values() if value is not None)


SUMMARY: dict[str, Callable[[Run], float]] = {
    "mean gain by own stage": learned,
    "smallest gain by own stage": least_learned,
    "average forgetting": average_forgetting,
    "average accuracy": lambda run: run["average_accuracy"],
    "average test accuracy": lambda run: statistics.fmean(run["test"]["accuracy"].values()),
}


def spread(values: Sequence[float]) -> str:
    """Mean in percent, and the range over seeds."""
    low, mean, high = (
        100 * value for value in (min(values), statistics.fmean(values), max(values))
    )
    return f"{mean:.0f} ({low:.0f}–{high:.0f})"  # noqa: RUF001 - a range in a table


def matrix_table(method: str, runs: Sequence[Run]) -> str:
    """The mean accuracy matrix over seeds, in percent."""
    tasks = runs[0]["tasks"]
    lines = [f"**{method}**, {len(runs)} seeds", "", "| | " + " | ".join(tasks) + " |"]
    lines.append("|---|" + "---|" * len(tasks))
    for index, row in enumerate(runs[0]["rows"]):
        name = "before training" if row["after"] is None else f"after {row['after']}"
        cells = [spread([run["rows"][index]["accuracy"][task] for run in runs]) for task in tasks]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    test = [spread([run["test"]["accuracy"][task] for run in runs]) for task in tasks]
    return "\n".join([*lines, "| test rows, at the end | " + " | ".join(test) + " |", ""])


def summary_table(groups: dict[str, list[Run]]) -> str:
    """One column per method, in percent."""
    lines = ["| | " + " | ".join(groups) + " |", "|---|" + "---|" * len(groups)]
    for name, read in SUMMARY.items():
        cells = [spread([read(run) for run in runs]) for runs in groups.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
