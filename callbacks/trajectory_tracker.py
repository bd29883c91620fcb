"""Measures learning and drift within a stage, every few optimizer steps."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file, save

from callbacks.stage_checkpoint import at_stage_end
from sdft.evaluation.general_prompts import TokenMean, general_prompts, token_mean
from sdft.loss.distillation import token_logprobs
from sdft.loss.hidden_states import LossPositions
from sdft.loss.reference_answers import ReferenceAnswers
from sdft.model.modes import evaluation_mode
from sdft.runs.files import write_bytes_atomically, write_text_atomically
from sdft.seeds import Stream, mix_seed
from sdft.tasks.tasks import Task
from sdft.types import Demonstration

BASE_FILE = "general_answers.safetensors"


class TrajectoryTracker(L.Callback):
    """Measures the model at the start of a stage, every n optimizer steps, and at its end.

    A row of ``trajectory.jsonl`` has these values, on the same few rows and prompts every time:

    - ``accuracy``: each task's, greedy, on its first validation rows;
    - ``demonstration_nll``: negative log-likelihood of these rows' demonstrations, in nats per
      token: it still moves where the accuracy is 0 or 1;
    - ``forgetting`` and ``demonstration_nll_rise``: how far the accuracy of each earlier task has
      fallen, and its ``demonstration_nll`` risen, since the start of the stage;
    - ``general_drift``: KL(base || model) in nats per token on general prompts, along answers that
      the base model sampled before training (temperature 1), with its standard error over prompts.
      The base model's answers and distributions are kept in ``general_answers.safetensors``, so no
      copy of its weights is needed. Of each distribution, the 1,024 most likely tokens are kept and
      the others lumped together, so the value is a lower bound of the full divergence, short by
      less than the file's ``unkept`` probability times the divergence within the others.

    TensorBoard shows the same over ``global_step``. ``seconds`` is how long the row took to
    measure; the times of the steps do not include it. Checkpoints hold the rows.

    Args:
        every_n_steps: Optimizer steps between two rows; 0 turns the callback off.
        num_rows: Validation rows of each task.
        num_prompts: General prompts.
        prompts: JSON Lines file of your own prompts, with id and prompt; null for those that
            come with the package.
        max_new_tokens: Longest answer to a general prompt.

    Raises:
        ValueError: An option is out of range, or there are fewer general prompts.
        FileNotFoundError: The file of prompts does not exist.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        num_rows: int = 24,
        num_prompts: int = 32,
        prompts: str | None = None,
        max_new_tokens: int = 32,
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"trajectory.every_n_steps is {every_n_steps}; it must be 0 or more")
        counts = {"num_rows": num_rows, "num_prompts": num_prompts}
        for name, value in {**counts, "max_new_tokens": max_new_tokens}.items():
            if value < 1:
                raise ValueError(f"trajectory.{name} is {value}; it must be at least 1")
        self.every_n_steps, self.num_rows = every_n_steps, num_rows
        self.max_new_tokens = max_new_tokens
        self.rows: list[dict[str, Any]] = []
        self._prompts = general_prompts(prompts, num_prompts) if every_n_steps else []
        self._base: ReferenceAnswers | None = None

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's rows."""
        self.rows = list(state_dict["rows"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record or read the base model's answers, and measure at the start of a stage."""
        if not self.every_n_steps:
            return
        if self._base is None:
            self._base = self._base_answers(trainer, pl_module)
        if trainer.global_step == trainer.datamodule.plan.first_step(trainer.datamodule.stage):
            self._add_row(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Measure every n steps of the stage, and after its last."""
        if not self.every_n_steps:
            return
        if self._step(trainer) % self.every_n_steps == 0 or at_stage_end(trainer):
            self._add_row(trainer, pl_module)

    @staticmethod
    def _step(trainer: L.Trainer) -> int:
        """Optimizer steps of the current stage."""
        data = trainer.datamodule
        return trainer.global_step - data.plan.first_step(data.stage)

    def _base_answers(self, trainer: L.Trainer, module: Any) -> ReferenceAnswers:
        """The base model's answers: sampled before the first step, read back on resuming."""
        file = Path(trainer.default_root_dir) / BASE_FILE
        if trainer.global_step:
            if not file.exists():
                raise ValueError(
                    f"{file} is missing: it holds the base model's answers, from which a resumed "
                    "run measures drift; restore it, or set trajectory.every_n_steps to 0"
                )
            return ReferenceAnswers.from_state(load_file(file))
        prompts = [trainer.datamodule.reader.student_prompt(row) for row in self._prompts]
        with trainer.precision_plugin.val_step_context():
            # Noise that no run's seed changes.
            seeds = [mix_seed(Stream.GENERAL_ANSWERS, 0, place) for place in range(len(prompts))]
            answers: ReferenceAnswers
            answers = module.reference_answers(prompts, self.max_new_tokens, seeds)
        if trainer.is_global_zero:
            unkept = answers.rest.exp().mean().item()
            content = save(answers.state(), metadata={"unkept": f"{unkept:.6f}"})
            write_bytes_atomically(file, content)
        return answers

    def _add_row(self, trainer: L.Trainer, module: Any) -> None:
        start = time.perf_counter()
        data, step = trainer.datamodule, self._step(trainer)
        row = {
            "task": data.plan.tasks[data.stage],
            "step": step,
            "global_step": trainer.global_step,
        }
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            row |= self._measure(module, data)
        earlier = data.plan.tasks[: data.stage]
        row |= losses(self._stage_start(row), row, earlier)
        row["seconds"] = time.perf_counter() - start
        self.rows.append(row)
        if trainer.is_global_zero:
            lines = "".join(json.dumps(each, allow_nan=False) + "\n" for each in self.rows)
            write_text_atomically(Path(trainer.default_root_dir) / "trajectory.jsonl", lines)
            _log(trainer, row)

    def _stage_start(self, row: dict[str, Any]) -> dict[str, Any]:
        """The first row of a row's stage, which may be the row itself."""
        return next((each for each in self.rows if each["task"] == row["task"]), row)

    def _measure(self, module: Any, data: L.LightningDataModule) -> dict[str, Any]:
        rows = [(task, task.validation[: self.num_rows]) for task in data.tasks]
        shown = [(task, [row for row in of if row.demonstration]) for task, of in rows]
        assert self._base is not None
        with module.prepared():
            accuracies = {task.name: accuracy(module, data, task, of) for task, of in rows}
        drift = drift_from(self._base, module.student)
        return {
            "accuracy": accuracies,
            "demonstration_nll": {
                task.name: demonstration_nll(module, data, of) for task, of in shown if of
            },
            "general_drift": drift.mean,
            "general_drift_error": drift.standard_error,
        }


def losses(start: dict[str, Any], now: dict[str, Any], earlier: Sequence[str]) -> dict[str, Any]:
    """Forgetting of earlier tasks between two rows of a stage, by accuracy and by likelihood."""
    before, after = start["accuracy"], now["accuracy"]
    nll_before, nll_after = start["demonstration_nll"], now["demonstration_nll"]
    return {
        "forgetting": {task: before[task] - after[task] for task in earlier},
        "demonstration_nll_rise": {
            task: nll_after[task] - nll_before[task] for task in earlier if task in nll_after
        },
    }


def drift_from(base: ReferenceAnswers, model: Any) -> TokenMean:
    """KL(base || model) in nats per token of the base model's answers; at least 0."""
    counts = [len(completion) for completion in base.completions]
    by_answer = base.kl_of(model).double().split(counts)
    found = token_mean([each.sum().item() for each in by_answer], counts)
    return found._replace(mean=max(found.mean, 0.0))


def accuracy(
    module: Any, data: L.LightningDataModule, task: Task, rows: Sequence[Demonstration]
) -> float:
    """Mean score of greedy answers."""
    scores: list[float] = []
    for start in range(0, len(rows), data.eval_batch_size):
        batch = data.reader.evaluation_batch(task, rows[start : start + data.eval_batch_size])
        answers = module.answers(batch.prompts, module.generate(batch.prompts, module.greedy))
        scores += map(batch.scorer, answers, batch.rows)
    return sum(scores) / len(scores)


def demonstration_nll(
    module: Any, data: L.LightningDataModule, rows: Sequence[Demonstration]
) -> float:
    """Mean negative log-likelihood of the demonstrations' tokens, in nats."""
    prompts = [data.reader.student_prompt(row) for row in rows]
    demonstrations = [data.reader.demonstration(row) for row in rows]
    positions = LossPositions.of(demonstrations, device=module.device)
    with evaluation_mode(module.student):
        hidden = module.hidden_states(module.student, prompts, demonstrations, positions)
    return -token_logprobs(hidden, module.student_head, positions.tokens).mean().item()


def _log(trainer: L.Trainer, row: dict[str, Any]) -> None:
    scalars = {
        **{f"trajectory/accuracy/{task}": value for task, value in row["accuracy"].items()},
        **{f"trajectory/nll/{task}": value for task, value in row["demonstration_nll"].items()},
        **{f"trajectory/forgetting/{task}": value for task, value in row["forgetting"].items()},
        **{
            f"trajectory/nll_rise/{task}": value
            for task, value in row["demonstration_nll_rise"].items()
        },
        "trajectory/general_drift": row["general_drift"],
    }
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for tag, value in scalars.items():
                logger.experiment.add_scalar(tag, value, trainer.global_step)
            logger.experiment.flush()
