"""Measure suites with lm-evaluation-harness.

A measurement has no side effects: the states of all random generators and every module's mode are
restored afterwards.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, load_dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from sdft.evaluation.capabilities.human_eval import check_sandbox
from sdft.evaluation.capabilities.in_memory_lm import InMemoryLM, Subject
from sdft.evaluation.capabilities.margins import suite_margins
from sdft.evaluation.capabilities.suites import Doc, Suite
from sdft.model.modes import evaluation_mode
from sdft.seeds import seeded

SEED = 1234  # for examples in a prompt and defaults of IFEval's instructions

Metrics = dict[str, float]


class Measured(NamedTuple):
    """The results of some suites.

    Args:
        metrics: Suite name -> metric -> value, in [0, 1].
        margins: Suite name -> margin of each row, for suites whose rows are choices between texts.
    """

    metrics: dict[str, Metrics]
    margins: dict[str, list[float]]


class LocalTask(ConfigurableTask):  # type: ignore[misc]
    """A task of the harness on rows in memory.

    Args:
        name: The task's name.
        docs: Its rows, with the fields that ``config`` names.
        config: Configuration as in the harness's YAML files.
    """

    def __init__(self, name: str, docs: Sequence[Doc], config: Mapping[str, Any]) -> None:
        self._docs = docs
        super().__init__(config={"task": name, "test_split": "test", "num_fewshot": 0, **config})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Set the dataset to the rows in memory; nothing is downloaded."""
        self.dataset = {"test": Dataset.from_list(list(self._docs))}


def load_tasks(
    suites: Sequence[Suite], folder: Path | None, num_rows: int | None = None
) -> dict[str, Any]:
    """Load the harness's tasks, which can be measured any number of times.

    Args:
        suites: Suites to measure.
        folder: Folder of the local rows; None uses the harness's own tasks, from the hub.
        num_rows: Number of each suite's first local rows to keep; None keeps all.

    Raises:
        FileNotFoundError: A suite has no local rows.
        ValueError: A row does not have the form that its suite needs.
    """
    if any(suite.runs_code for suite in suites):
        check_sandbox()
    if folder is None:
        loaded: dict[str, Any] = TaskManager().load([_hub_task(suite) for suite in suites])
        return loaded
    tasks = {
        suite.name: LocalTask(suite.name, suite.read(folder, num_rows), suite.config())
        for suite in suites
    }
    return {"tasks": tasks, "groups": {}}


def _hub_task(suite: Suite) -> str | LocalTask:
    """The harness's own task, except where it would run code without a sandbox."""
    if not suite.runs_code:
        return suite.hub_task
    rows = load_dataset("openai/openai_humaneval", split="test")
    docs = [{**row, "code_prompt": row["prompt"]} for row in rows]
    return LocalTask(suite.hub_task, docs, suite.config())


def measure(
    tasks: dict[str, Any],
    suites: Sequence[Suite],
    subject: Subject,
    *,
    batch_size: int,
    num_rows: int | None = None,
    max_generated_tokens: int | None = None,
) -> Measured:
    """Measure all suites, with one progress bar.

    Args:
        tasks: From :func:`load_tasks`.
        suites: The same suites.
        subject: The model, its tokenizer and how to sample from it.
        batch_size: Requests per batch.
        num_rows: Rows of each task; a suite from the hub may have several tasks.
        max_generated_tokens: Length limit of completions, for suites that allow longer ones.
    """
    with (
        tqdm(desc="Prior capabilities", unit=" requests", file=sys.stderr) as bar,
        redirect_stderr(io.StringIO()),  # the harness's own bars
        seeded(SEED),
        evaluation_mode(subject.model),
    ):
        model = InMemoryLM(subject, batch_size, max_generated_tokens, bar)
        found = evaluate(model, tasks, limit=num_rows, bootstrap_iters=0, log_samples=True)
    metrics = {suite.name: _metrics(found["results"][suite.hub_task]) for suite in suites}
    margins = {
        suite.name: suite_margins(
            found["samples"].get(suite.hub_task, []),
            lambda text: len(subject.tokenizer(text, add_special_tokens=False)["input_ids"]),
        )
        for suite in suites
    }
    return Measured(metrics, {suite: rows for suite, rows in margins.items() if rows})


def _metrics(result: Mapping[str, Any]) -> Metrics:
    """Metrics without the filter in their names, such as ``acc`` from ``acc,none``."""
    return {
        key.partition(",")[0]: round(float(value), 6)
        for key, value in result.items()
        if "," in key and "_stderr," not in key
    }
