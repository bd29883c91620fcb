"""Runs two training processes in turn, and compares their steps."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepping.works import Work, write_job

BENCHMARKS = Path(__file__).resolve().parents[1]
OUR_SCRIPT = BENCHMARKS / "stepping" / "ours.py"
TRL_SCRIPT = BENCHMARKS / "peers" / "trl_step.py"
NUM_WARM_UP = 1
COUNTS = ("prompt_tokens", "teacher_tokens", "completion_tokens")
Step = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One of the two compared programs.

    Args:
        name: The name in messages and file names.
        script: The script that its process runs.
        python: Its interpreter.
        changes: Entries of the job that differ from those of the work.
    """

    name: str
    script: Path
    python: str
    changes: dict[str, Any]


def ours(**changes: Any) -> Side:
    """This project."""
    return Side("ours", OUR_SCRIPT, sys.executable, changes)


def trl(python: str, **changes: Any) -> Side:
    """TRL's trainer in the environment of an interpreter."""
    return Side("trl", TRL_SCRIPT, python, changes)


@dataclass(frozen=True)
class Comparison:
    """The measured steps of both sides, pair by pair; theirs are empty if they were left out."""

    ours: Sequence[Step]
    theirs: Sequence[Step]

    def ratio(self, clock: str) -> float | None:
        """Median over the pairs of their seconds over ours: above 1, ours is faster."""
        pairs = zip(self.theirs, self.ours, strict=False)
        ratios = [theirs[clock] / ours[clock] for theirs, ours in pairs]
        return statistics.median(ratios) if ratios else None

    def memory_ratio(self) -> float | None:
        """Our peak over theirs: below 1, ours is smaller."""
        return self.ours[-1]["peak_mib"] / self.theirs[-1]["peak_mib"] if self.theirs else None


def compare(
    folder: Path, work: Work, sides: Sequence[Side], num_pairs: int, threads: int
) -> Comparison:
    """Let the sides step in turn, after some unmeasured steps.

    Args:
        folder: For the jobs and the files of the processes.
        work: The work of a step.
        sides: Ours, and theirs if it takes part.
        num_pairs: Measured steps of each side.
        threads: Threads of each process; only one works at a time.

    Raises:
        RuntimeError: The sides should have done the same work, and did not.
    """
    steps: list[list[Step]] = [[] for _ in sides]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(Process(folder, work, side, num_pairs + NUM_WARM_UP, threads))
            for side in sides
        ]
        for _ in range(num_pairs + NUM_WARM_UP):
            for process, taken in zip(processes, steps, strict=True):
                taken.append(process.step())
            if work.equal_tokens:
                check_same_work([taken[-1] for taken in steps])
    measured = [taken[NUM_WARM_UP:] for taken in steps]
    return Comparison(measured[0], measured[1] if len(measured) > 1 else [])


def check_same_work(steps: Sequence[Step]) -> None:
    """Refuse to compare steps that read or wrote different numbers of tokens."""
    counts = [{name: step[name] for name in COUNTS} for step in steps]
    if any(each != counts[0] for each in counts):
        raise RuntimeError(f"the sides did not do the same work: {counts}")


class Process:
    """A training process that takes a step when it is asked to.

    Args:
        folder: Parent of the folder with its job and its messages.
        work: The work of a step.
        side: The program to run.
        num_steps: Number of steps that it will be asked for.
        threads: Number of its threads.
    """

    def __init__(self, folder: Path, work: Work, side: Side, num_steps: int, threads: int) -> None:
        own = folder / f"{len(list(folder.iterdir()))}_{side.name}"
        job = write_job(own, work, num_steps, threads) | side.changes
        (own / "job.json").write_text(json.dumps(job), encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}",
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._side, self._log = side, own / "log.txt"
        self._process = subprocess.Popen(
            [side.python, str(side.script), str(own / "job.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            env=environment,
        )
        self._read()  # it has loaded

    def step(self) -> Step:
        """One step's seconds, peak memory, tokens and phases."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> Step:
        line = self._process.stdout.readline()
        if not line:
            log = self._log.read_text(encoding="utf-8")[-4000:]
            raise RuntimeError(f"the process of {self._side.name} ended early:\n{log}")
        return json.loads(line)
