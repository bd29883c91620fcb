"""Trains a method for a few steps at several learning rates, for ``sdft probe``."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from command_line.continual_cli import ContinualCLI, parsed
from sdft.report import compare, read_run
from sdft.report.load_runs import Run
from sdft.report.trade_off import Choice, trade_offs
from sdft.report.trajectory_rows import LEARNINGS

NUM_PROMPTS = 24
"""General prompts on which drift is measured."""


@dataclass(frozen=True, slots=True)
class FirstStage:
    """What a pilot needs to know of a configuration.

    Args:
        task: The resolved options of its first task.
        num_validation: The task's validation rows.
        has_test: Whether the task has test rows.
        batch_size: Prompts per optimizer step.
        num_steps: Optimizer steps of the task's stage.
        seed: Its seed.
    """

    task: Mapping[str, Any]
    num_validation: int
    has_test: bool
    batch_size: int
    num_steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Pilot:
    """The results of a pilot.

    Args:
        stage: What was trained.
        runs: Learning rate -> its run, which has a trajectory.
        choice: The rate chosen by the report's rule; None if no rate learned anything.
    """

    stage: FirstStage
    runs: Mapping[float, Run]
    choice: Choice | None

    @property
    def num_steps(self) -> int:
        """Optimizer steps that each rate took."""
        first, *_ = self.runs.values()
        return max(row.step for row in first.trajectory or ())

    def learned(self, rate: float, num_rows: int | None = None) -> tuple[float, float, float]:
        """Accuracy, gain in log-likelihood and drift after some rows of a run, by default all."""
        rows = (self.runs[rate].trajectory or ())[:num_rows]
        accuracy, gain = (each.of(rows, str(self.stage.task["name"])) for each in LEARNINGS)
        return accuracy or 0.0, gain or 0.0, rows[-1].general_drift or 0.0

    def lines(self) -> list[str]:
        """The results of each rate."""
        heading = (
            f"Pilot of {self.num_steps} steps on {self.stage.task['name']}, with a schedule of its "
            "own, one seed:"
        )
        values = [(rate, *self.learned(rate)) for rate in self.runs]
        return [
            heading,
            *(
                f"  learning rate {rate:<8g} accuracy {accuracy:4.0%}   log-likelihood of the "
                f"demonstrations {gain:+.2f}   drift {drift:.2f} nats a token"
                for rate, accuracy, gain, drift in values
            ),
        ]

    def last_useful_step(self) -> int | None:
        """The step after which the chosen rate learned nothing more; None if it still learned."""
        assert self.choice is not None
        rows = self.choice.runs[self.stage.seed].trajectory or ()
        accuracy, gain, _ = self.learned(self.choice.rate)
        for place in range(1, len(rows) - 1):
            then_accuracy, then_gain, _ = self.learned(self.choice.rate, place + 1)
            if then_accuracy >= accuracy and then_gain >= gain:
                return rows[place].step
        return None


def run_pilot(
    arguments: Sequence[str],
    stage: FirstStage,
    folder: Path,
    *,
    rates: Sequence[float],
    num_steps: int,
    num_rows: int,
    say: Callable[[str], object],
) -> Pilot:
    """Train at each rate, one after another.

    Args:
        arguments: The command line, with the method's configuration.
        stage: What to train.
        folder: For the runs.
        rates: Learning rates.
        num_steps: Optimizer steps; no more than the stage has.
        num_rows: Validation rows to measure the accuracy on.
        say: Is told about progress and time.

    Raises:
        SystemExit: A run ended in an error, which it names.
    """
    settings = folder / "pilot.yaml"
    content = pilot_settings(stage, min(num_steps, stage.num_steps), num_rows)
    settings.write_text(yaml.safe_dump(content), "utf-8")
    runs = {}
    for place, rate in enumerate(rates, start=1):
        start = time.perf_counter()
        run_dir = folder / f"rate-{rate:g}"
        own = [f"--model.init_args.learning_rate={rate}", f"--seed_everything={stage.seed}"]
        with redirect_stdout(io.StringIO()):  # tables and paths of a run that is not kept
            parsed(
                ["fit", *arguments, f"--config={settings}", *own, f"--run_dir={run_dir}"],
                ContinualCLI,
            )
        runs[rate] = read_run(run_dir)
        seconds = time.perf_counter() - start
        left = len(rates) - place
        more = f"; about {left * seconds / 60:.1f} minutes more" if left else ""
        say(f"pilot at learning rate {rate:g}: {seconds:.0f} s{more}\n")
    return pilot_of(stage, runs)


def pilot_of(stage: FirstStage, runs: Mapping[float, Run]) -> Pilot:
    """The results, with the learning rate that the report's rule chooses."""
    [comparison] = compare(runs.values())
    found = trade_offs(comparison)
    return Pilot(stage, runs, found[0].chosen[0].choice if found else None)


def pilot_settings(stage: FirstStage, num_steps: int, num_rows: int) -> dict[str, Any]:
    """The override config of a pilot: its first task alone, a few steps, and a trajectory."""
    fewer = {"num_validation": min(num_rows, stage.num_validation)}
    if stage.has_test:
        fewer["num_test"] = 1
    return {
        "data": {
            "tasks": [{**stage.task, **fewer}],
            "examples_per_stage": num_steps * stage.batch_size,
            "num_trained_tasks": 0,
        },
        "trajectory": {
            "every_n_steps": max(1, num_steps // 2),
            "num_rows": num_rows,
            "num_prompts": NUM_PROMPTS,
        },
        "in_context": {"num_rows": 0},
        "drift": {"num_prompts": 0},
        "export": {"enabled": False},
        "trainer": {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "callbacks.RetentionTracker"}],
        },
    }
