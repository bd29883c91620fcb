"""``sdft probe``: recommends method, prompt template and learning rate for a task."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import yaml

from callbacks.in_context import SelfTaught, compare
from command_line.continual_cli import ContinualCLI, parsed
from command_line.short_pilot import FirstStage, Pilot, run_pilot
from sdft.runs.failures import UsageError
from sdft.runs.files import write_text_atomically
from sdft.tasks.prompting import shipped_templates

RATES = (2e-5, 5e-5, 1e-4)
"""Learning rates of a pilot."""

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


def with_pilot(found: Recommendation, pilot: Pilot) -> Recommendation:
    """The recommendation with the pilot's learning rate, and a number of steps if it saw one."""
    if pilot.choice is None:
        untaught = f"No learning rate learned anything in {pilot.num_steps} steps, so it stays the "
        advice = "configuration's. More --pilot_steps or higher --pilot_rates may find one."
        return replace(found, because=(*found.because, untaught + advice))
    rate, stage = pilot.choice.rate, pilot.stage
    model, data = dict(found.settings["model"]), dict(found.settings.get("data", {}))
    model["init_args"] = {**model.get("init_args", {}), "learning_rate": rate}
    enough = pilot.last_useful_step()
    steps = f"Steps: {stage.num_steps} a stage as configured; after {pilot.num_steps} the model "
    steps += "was still learning."
    if enough is not None:
        data["examples_per_stage"] = enough * stage.batch_size
        steps = f"Steps: {enough} a stage, after which the pilot learned no more."
    settings = {**found.settings, "model": model, **({"data": data} if data else {})}
    because = (
        f"Learning rate {rate:g}: {pilot.choice.how}. Drift is {pilot.learned(rate)[2]:.2f} nats a "
        "token there.",
        steps,
        "One seed chooses and proves nothing. Where drift rises before accuracy does, halve the "
        "rate; compare methods over seeds with configs/studies/pilot.yaml.",
    )
    return Recommendation(settings, (*found.because, *because))


def probe_main(args: list[str]) -> None:
    """Try templates and learning rates, and print a recommendation with its evidence."""
    options, rest = _options(args)
    probe = _TemplateProbe(options.templates, options.num_rows)
    sys.argv = sys.argv[:1]  # Lightning warns of arguments given twice
    try:
        with TemporaryDirectory() as name:  # the probe leaves nothing in a run's folder
            stage = _probed(probe, rest, name)
            found = recommend(probe.findings)
            sys.stdout.write(in_words(probe.findings, options.num_rows))
            if options.pilot_steps:
                found, lines = _piloted(found, rest, stage, Path(name), options)
                sys.stdout.write("".join(f"{line}\n" for line in lines))
    except (UsageError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.write("".join(f"{sentence}\n" for sentence in found.because))
    if not options.pilot_steps:
        sys.stdout.write("Learning rate and steps are for a pilot to find: --pilot_steps 8\n")
    if options.output is not None:
        write_text_atomically(options.output, as_config(found))
        sys.stdout.write(f"Written to {options.output}: give it as a last --config\n")


def _options(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The probe's own options, and those of the configuration."""
    parser = argparse.ArgumentParser(
        prog="sdft probe",
        usage="%(prog)s --config CONFIG [--num_rows N] [--pilot_steps N] [options]",
        description=__doc__,
        epilog="All options of validate are taken, --config among them, several times if need be.",
    )
    parser.add_argument("--num_rows", type=int, default=16, help="training rows of each task")
    parser.add_argument(
        "--templates", nargs="+", default=shipped_templates(), help="names or .jinja files"
    )
    parser.add_argument(
        "--pilot_steps",
        type=int,
        default=8,
        help="optimizer steps at each rate, on the first task; 0 for no pilot (default: 8)",
    )
    parser.add_argument(
        "--pilot_rates", type=float, nargs="+", default=RATES, help="learning rates to try"
    )
    parser.add_argument("--output", type=Path, help="write the recommendation as a configuration")
    options, rest = parser.parse_known_args(args)
    if options.num_rows < 1:
        raise SystemExit(f"error: --num_rows is {options.num_rows}; it must be at least 1")
    if options.pilot_steps < 0:
        raise SystemExit(f"error: --pilot_steps is {options.pilot_steps}; it must be 0 or more")
    if options.pilot_steps and any(each.startswith("--ckpt_path") for each in rest):
        raise SystemExit("error: a pilot does not train from --ckpt_path: add --pilot_steps 0")
    for rate in options.pilot_rates:
        if not 0 < rate < 1:
            raise SystemExit(f"error: --pilot_rates has {rate:g}; rates lie between 0 and 1")
    options.pilot_rates = sorted(set(options.pilot_rates))
    return options, rest


def _probed(probe: _TemplateProbe, rest: Sequence[str], folder: str) -> FirstStage:
    """Run the probe in ``validate``; what the configuration's first stage is."""

    class Probing(ContinualCLI):
        """``validate``, which runs the probe."""

        def before_validate(self) -> None:
            """Add the probe."""
            self.trainer.callbacks.append(probe)

    cli = parsed(["validate", *rest, f"--run_dir={folder}"], Probing)
    resolved = json.loads(cli.parser.dump(cli.config, format="json", skip_unset=False))["validate"]
    [first, *_], plan, seed = cli.datamodule.tasks, cli.datamodule.plan, resolved["seed_everything"]
    return FirstStage(
        task=resolved["data"]["tasks"][0],
        num_validation=len(first.validation),
        has_test=bool(first.test),
        batch_size=plan.batch_size,
        num_steps=-(-plan.num_examples[0] // plan.batch_size),
        seed=seed if type(seed) is int else 0,
    )


def _piloted(
    found: Recommendation,
    rest: Sequence[str],
    stage: FirstStage,
    folder: Path,
    options: argparse.Namespace,
) -> tuple[Recommendation, list[str]]:
    """The recommendation after a pilot of it, and the pilot's results."""
    recommended = folder / "recommended.yaml"
    recommended.write_text(as_config(found), "utf-8")
    number = len(options.pilot_rates)
    sys.stdout.write(f"Pilot: {number} short runs of this method, --pilot_steps 0 for none\n")
    sys.stdout.flush()
    pilot = run_pilot(
        [*rest, f"--config={recommended}"],
        stage,
        folder,
        rates=options.pilot_rates,
        num_steps=options.pilot_steps,
        num_rows=options.num_rows,
        say=sys.stdout.write,
    )
    return with_pilot(found, pilot), pilot.lines()


def in_words(findings: Sequence[Finding], num_rows: int) -> str:
    """What the templates gave."""
    lines = [
        f"\n{num_rows} training rows of each task, means over tasks; the student alone: "
        f"{findings[0].mean('student_accuracy'):.0%}",
        *(each.line() for each in findings),
    ]
    return "\n".join(lines) + "\n"


def as_config(found: Recommendation) -> str:
    """The override config, with the evidence as its comment."""
    comment = "".join(f"# {sentence}\n" for sentence in found.because)
    return comment + yaml.safe_dump(found.settings, sort_keys=False)
