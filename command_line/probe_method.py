"""``sdft probe``: recommends a method and a prompt template for a task before training."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import yaml

from callbacks.in_context import SelfTaught, compare
from command_line.continual_cli import ContinualCLI, parsed
from sdft.runs.failures import UsageError
from sdft.runs.files import write_text_atomically
from sdft.tasks.prompting import shipped_templates

Numbers = Mapping[str, float]
"""What :data:`callbacks.in_context.DEFINITIONS` names."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Results of one prompt template on the training rows of all tasks.

    Args:
        template: Its name.
        by_task: Task -> its results.
    """

    template: str
    by_task: Mapping[str, Numbers]

    def mean(self, name: str) -> float:
        """Mean over the tasks."""
        return statistics.fmean(numbers[name] for numbers in self.by_task.values())

    def line(self) -> str:
        """The results in one line."""
        return (
            f"  {self.template:<16} teacher {self.mean('teacher_accuracy'):4.0%}   "
            f"KL(teacher || student) {self.mean('kl_teacher_student'):.2f} nats a token"
        )


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommended settings.

    Args:
        settings: An override config.
        because: Sentences with the evidence and what would change the recommendation.
    """

    settings: dict[str, Any]
    because: tuple[str, ...]


def recommend(findings: Sequence[Finding]) -> Recommendation:
    """Choose the method from the accuracies of teacher and student.

    The template is the one with the most accurate teacher; of equal ones, that with the least KL.
    If its teacher is no better than the student: SFT. If it is better and the student answers
    nothing right: SDFT on the demonstrations. Otherwise: SDFT on the student's own samples.

    Args:
        findings: At least one.
    """
    best = max(
        findings,
        key=lambda each: (each.mean("teacher_accuracy"), -each.mean("kl_teacher_student")),
    )
    student, teacher = best.mean("student_accuracy"), best.mean("teacher_accuracy")
    evidence = f"the student answers {student:.0%} of the rows, the best teacher {teacher:.0%}"
    if teacher <= student:
        return Recommendation(
            {"model": {"class_path": "lightning_modules.SFTModule"}},
            (
                f"SFT: {evidence}. A teacher that is not better has nothing to pass on.",
                "A template of your own or a larger model would change this.",
            ),
        )
    fraction = 1.0 if student > 0 else 0.0
    settings = {
        "model": {
            "class_path": "lightning_modules.SDFTModule",
            "init_args": {"on_policy_fraction": fraction},
        },
        "data": {"teacher_template": best.template},
    }
    if fraction:
        return Recommendation(
            settings,
            (
                f"SDFT on the student's own samples, template {best.template}: {evidence}.",
                "If train/ended or the accuracy stays low, score the demonstrations instead "
                "(on_policy_fraction 0).",
            ),
        )
    return Recommendation(
        settings,
        (
            f"SDFT on the demonstrations, with the template {best.template}: {evidence}, so that "
            "none of its samples would be one to learn from.",
            "Once the accuracy is above 0, on_policy_fraction 0.5 or 1 may keep more.",
        ),
    )


class _TemplateProbe(L.Callback):
    """Asks student and teacher the first training rows of each task, for each prompt template."""

    def __init__(self, templates: Sequence[str], num_rows: int) -> None:
        self.templates, self.num_rows = templates, num_rows
        self.findings: list[Finding] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ask them."""
        if not isinstance(pl_module, SelfTaught):
            raise UsageError(
                f"the configuration's method, {type(pl_module).__name__}, has no teacher to try: "
                "probe with model.class_path lightning_modules.SDFTModule"
            )
        data = trainer.datamodule
        with trainer.precision_plugin.val_step_context():
            for template in self.templates:
                reader = data.reader.with_template(template)
                by_task = {
                    task.name: compare(
                        pl_module, reader.train_batch(task.train[: self.num_rows]), task
                    )
                    for task in data.tasks
                }
                self.findings.append(Finding(template, by_task))


def probe_main(args: list[str]) -> None:
    """Try the templates, and print a recommendation with its evidence."""
    parser = argparse.ArgumentParser(
        prog="sdft probe",
        usage="%(prog)s --config CONFIG [--num_rows N] [options]",
        description=__doc__,
        epilog="All options of validate are taken, --config among them, several times if need be.",
    )
    parser.add_argument("--num_rows", type=int, default=16, help="training rows of each task")
    parser.add_argument(
        "--templates", nargs="+", default=shipped_templates(), help="names or .jinja files"
    )
    parser.add_argument("--output", type=Path, help="write the recommendation as a configuration")
    options, rest = parser.parse_known_args(args)
    if options.num_rows < 1:
        raise SystemExit(f"error: --num_rows is {options.num_rows}; it must be at least 1")
    probe = _TemplateProbe(options.templates, options.num_rows)

    class Probing(ContinualCLI):
        """``validate``, which runs the probe."""

        def before_validate(self) -> None:
            """Add the probe."""
            self.trainer.callbacks.append(probe)

    sys.argv = sys.argv[:1]  # Lightning warns of arguments given twice
    try:
        with TemporaryDirectory() as folder:  # the probe leaves nothing in a run's folder
            parsed(["validate", *rest, f"--run_dir={folder}"], Probing)
    except (UsageError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    found = recommend(probe.findings)
    sys.stdout.write(in_words(probe.findings, found, options.num_rows))
    if options.output is not None:
        write_text_atomically(options.output, as_config(found))
        sys.stdout.write(f"Written to {options.output}: give it as a last --config\n")


def in_words(findings: Sequence[Finding], found: Recommendation, num_rows: int) -> str:
    """The evidence, the recommendation, and what remains to be tuned."""
    lines = [
        f"\n{num_rows} training rows of each task, means over tasks; the student alone: "
        f"{findings[0].mean('student_accuracy'):.0%}",
        *(each.line() for each in findings),
        *found.because,
        "Learning rate and number of steps are for a pilot to find: docs/playbook.md, step 3.",
    ]
    return "\n".join(lines) + "\n"


def as_config(found: Recommendation) -> str:
    """The override config, with the evidence as its comment."""
    comment = "".join(f"# {sentence}\n" for sentence in found.because)
    return comment + yaml.safe_dump(found.settings, sort_keys=False)
