"""Measures and prints lines of the table: a workload, both sides, and their ratios."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepping import works
from stepping.random_models import MAX_COUNT, Shape
from stepping.sides import NUM_WARM_UP, Comparison, Side, Step, compare, ours, trl
from stepping.works import Work

from sdft.tasks.sources import FetchError, fetched

WORST = {"cpu_ratio": min, "wall_ratio": min, "rss_ratio": max}
COLUMNS = (
    "| work | tokens | CPU s | theirs | ratio | wall s | theirs | ratio | MiB | theirs | ratio |"
)
QUICK_LENGTH = 4
Figures = dict[str, float | None]


@dataclass(frozen=True)
class Bench:
    """Settings of the measurements.

    Args:
        folder: For models, jobs and logs.
        trl_python: TRL's interpreter; None leaves TRL out.
        num_pairs: Measured pairs of steps.
        threads: Threads of each process.
        quick: Tiny models, random rows and short completions instead.
    """

    folder: Path
    trl_python: str | None
    num_pairs: int
    threads: int
    quick: bool

    @property
    def num_rows(self) -> int:
        """Enough rows for all steps."""
        return (self.num_pairs + NUM_WARM_UP) * works.BATCH_SIZE

    def versus_trl(self, work: Work, **changes: Any) -> Figures:
        """Measure, print a line of the table, and return its three ratios."""
        peer = [] if self.trl_python is None else [trl(self.trl_python, **changes)]
        found = self.compare(work, [ours(), *peer])
        ratios = (found.ratio("cpu_s"), found.ratio("wall_s"), found.memory_ratio())
        return dict(zip(WORST, ratios, strict=True))

    def compare(self, work: Work, sides: Sequence[Side]) -> Comparison:
        """Measure and print a line of the table."""
        found = compare(self.folder, work, sides, self.num_pairs, self.threads)
        print(table_line(work.title, found), flush=True)
        return found

    def random(self, shape: Shape, length: int) -> Work:
        """Random rows on a random model, completions of one length."""
        shape, length = (works.TINY, QUICK_LENGTH) if self.quick else (shape, length)
        return works.random_work(self._new_folder(), shape, self.num_rows, length)

    def mixed(self) -> Work:
        """Random rows of many lengths on a model that counts."""
        shape, longest = works.SMALL_COUNTING, (800, MAX_COUNT)
        if self.quick:
            shape, longest = works.TINY_COUNTING, (40, QUICK_LENGTH)
        return works.mixed_work(self._new_folder(), shape, self.num_rows, longest)

    def real(self, name: str, length: int, *, forced: bool = True, **fields: Any) -> Work:
        """Rows of a data set on SmolLM2."""
        if self.quick:
            work = self.random(works.TINY, QUICK_LENGTH)
            return replace(work, forced=forced, equal_tokens=forced, **fields)
        model = self.folder / "smollm2"
        return works.real_work(model, name, self.num_rows, length, forced=forced, **fields)

    def some(self, *works: Any) -> tuple[Any, ...]:
        """All of these; in a quick run, where all are the same, only the first."""
        return works[:1] if self.quick else works

    def has(self, *names: str) -> bool:
        """Whether the public data sets are available; prints a line if not."""
        if self.quick:
            return True
        try:
            return bool(list(map(fetched, names)))
        except FetchError as error:
            print(f"left out: {error}")
            return False

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="model-", dir=self.folder))


def worst(figures: Sequence[Figures]) -> Figures:
    """The worst of each ratio; None if one was not measured."""
    found: Figures = {}
    for name, pick in WORST.items():
        values = [each[name] for each in figures]
        found[name] = None if None in values else round(pick(values), 3)
    return found


def header() -> str:
    """The table's first two lines."""
    return f"{COLUMNS}\n|{'---|' * (COLUMNS.count('|') - 1)}"


def table_line(title: str, found: Comparison) -> str:
    """Medians of both sides and the ratios, then the phases of a step."""
    cells = [title, f"{median(found.ours, 'completion_tokens'):.0f}"]
    for clock in ("cpu_s", "wall_s"):
        cells += triple(found, clock, ".2f", found.ratio(clock))
    cells += triple(found, "peak_mib", ".0f", found.memory_ratio())
    lines = [f"| {' | '.join(cells)} |"]
    for steps in filter(None, (found.ours, found.theirs)):
        lines.append(f"| · {phases(steps)} |{' |' * (COLUMNS.count('|') - 2)}")
    return "\n".join(lines)


def triple(found: Comparison, name: str, form: str, ratio: float | None) -> list[str]:
    """Ours, theirs and the ratio."""
    theirs = f"{median(found.theirs, name):{form}}" if found.theirs else "-"
    return [f"{median(found.ours, name):{form}}", theirs, "-" if ratio is None else f"{ratio:.2f}"]


def phases(steps: Sequence[Step]) -> str:
    """Fractions of a step's wall-clock seconds, by phase."""
    total = sum(step["wall_s"] for step in steps)
    shares = {
        name: sum(step["phases"][name] for step in steps) / total for name in steps[0]["phases"]
    }
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def median(steps: Sequence[Step], name: str) -> float:
    """Median of a number over the steps."""
    return statistics.median(step[name] for step in steps)
