"""Prior capabilities: general benchmarks before training and after each stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L

from callbacks.stage_recorder import StageRecorder, stage_under_evaluation
from sdft.evaluation.capabilities.capability_record import capability_record, capability_row
from sdft.evaluation.capabilities.suites import Suite, get_suite
from sdft.model.sharding import gathered_weights

PRIOR = ("hellaswag", "truthfulqa_mc1", "mmlu", "ifeval", "winogrande")


class CapabilityTracker(StageRecorder):
    """Measures general benchmarks before training and after each stage.

    They run through lm-evaluation-harness (``requirements-evaluation.txt``) on the weights in
    memory. The rows go to ``capabilities.json`` and to TensorBoard, where x is the number of
    stages done; checkpoints hold them, so a resumed run continues from them. Random states and
    modes are restored, so that a run trains the same weights with and without it. With several
    processes, each of them measures everything.

    Args:
        suites: Any of hellaswag, truthfulqa_mc1, mmlu, ifeval, winogrande, humaneval, arc_easy and
            arc_challenge; null for the first five, which run no code.
        folder: Local rows, in ``<folder>/suite_<name>/test.jsonl``; ``fetched`` for the public
            rows that ``sdft fetch`` or the first run brings; null takes the harness's own tasks
            with their rows from the Hugging Face hub.
        num_rows: Rows of each suite (with the hub's MMLU: of each subject); null for all.
        batch_size: Requests read or answered at a time.
        max_generated_tokens: Longest answer where a suite allows longer ones (IFEval 1280); null
            leaves it to the suite.
        every_stage: Measure after each stage; off: only before training and after the last stage.
        run_code: Let humaneval run functions that the model wrote, in a sandbox without network.

    Raises:
        ValueError: An option is out of range, a suite is unknown or a local row is not usable.
        FileNotFoundError: A suite has no local rows.
    """

    file = "capabilities.json"

    def __init__(
        self,
        suites: list[str] | None = None,
        folder: str | None = None,
        num_rows: int | None = None,
        batch_size: int = 16,
        max_generated_tokens: int | None = None,
        every_stage: bool = True,
        run_code: bool = False,
    ) -> None:
        super().__init__()
        _check_positive(
            num_rows=num_rows, batch_size=batch_size, max_generated_tokens=max_generated_tokens
        )
        self.suites = [get_suite(name) for name in (PRIOR if suites is None else suites)]
        _check_code(self.suites, run_code)
        self.source = "the Hugging Face hub" if folder is None else folder
        self.num_rows = num_rows
        self.every_stage = every_stage
        self.limits = {"batch_size": batch_size, "max_generated_tokens": max_generated_tokens}
        self._tasks = _load_tasks(self.suites, folder, num_rows)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the row, replacing it and all later ones if it was measured before."""
        stage = stage_under_evaluation(trainer)
        if stage is None:
            return
        plan = trainer.datamodule.plan
        tasks = plan.tasks
        if plan.first_stage < stage < len(tasks) and not self.every_stage:
            return
        measured = self._measure(trainer, pl_module)
        row = capability_row(tasks, stage, trainer.global_step, self.suites, *measured)
        self.add_row(trainer, pl_module, row)

    def record(self, module: Any, rows: Sequence[Any]) -> dict[str, Any]:
        """The content of ``capabilities.json``."""
        return capability_record(self.suites, self.source, self.num_rows, rows)

    def scalars(self, module: Any, rows: Sequence[Any]) -> dict[str, float]:
        """The scores of the last row, and their mean."""
        scores = {**rows[-1]["scores"], "average": rows[-1]["average"]}
        return {f"capability/{name}": value for name, value in scores.items()}

    def _measure(self, trainer: L.Trainer, module: L.LightningModule) -> tuple[Any, Any]:
        from sdft.evaluation.capabilities.harness import Subject, measure

        subject = Subject(
            module.student,
            module.student_head,
            module.tokenizer,
            module.generate,
            trainer.datamodule.reader.encoder,
        )
        with trainer.precision_plugin.val_step_context(), gathered_weights(module.student):
            return measure(self._tasks, self.suites, subject, num_rows=self.num_rows, **self.limits)


def _load_tasks(suites: list[Suite], folder: str | None, num_rows: int | None) -> dict[str, Any]:
    try:
        from sdft.evaluation.capabilities.harness import load_tasks
    except ModuleNotFoundError as error:
        raise ValueError(
            f"CapabilityTracker needs lm-evaluation-harness ({error}); install it with "
            "`pip install -r requirements-evaluation.txt`, or leave the callback out"
        ) from error
    return load_tasks(suites, None if folder is None else Path(folder), num_rows)


def _check_code(suites: list[Suite], run_code: bool) -> None:
    for suite in suites:
        if suite.runs_code and not run_code:
            raise ValueError(
                f"the suite {suite.name} runs code that the model wrote, in a sandbox; allow it "
                "with run_code: true, or leave the suite out"
            )


def _check_positive(**options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < 1:
            raise ValueError(f"CapabilityTracker's {name} is {value}; it must be at least 1")
