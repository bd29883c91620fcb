"""Drift from the base model, entropy and length of the student's samples, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from callbacks.stage_recorder import StageRecorder, labelled, stage_under_evaluation
from sdft.loss.hidden_states import LossPositions
from sdft.loss.probes import kl_and_entropy
from sdft.model.modes import evaluation_mode
from sdft.model.teacher import Teacher, make_teacher
from sdft.seeds import Stream, mix_seed
from sdft.types import TokenIds

DEFINITIONS = {
    "kl_student_base": "KL(student || base) in nats, mean over the tokens of the student's own "
    "sampled completions; the base model reads the same prompt and tokens.",
    "entropy": "Entropy of the student's next-token distribution in nats, mean over the same "
    "tokens.",
    "completion_length": "Mean number of tokens of these completions.",
}


class DriftTracker(StageRecorder):
    """Samples from the student before training and after each stage, on fixed prompts.

    The prompts are every task's first validation rows; the noise is the same at every stage.
    Results go to ``drift.json`` and to TensorBoard, where x is the number of stages done. When all
    weights are trained, the callback holds a frozen copy of the base model; with adapters, the base
    is the backbone with its adapters off.

    Args:
        num_prompts: Prompts of each task; 0 turns the callback off, and nothing is copied.

    Raises:
        ValueError: ``num_prompts`` is negative.
    """

    file = "drift.json"

    def __init__(self, num_prompts: int = 0) -> None:
        if num_prompts < 0:
            raise ValueError(f"drift.num_prompts is {num_prompts}; it must be 0 or more")
        super().__init__()
        self.num_prompts = num_prompts
        self._base: Teacher | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep the base model, before any training and before a checkpoint is read."""
        if self.num_prompts and self._base is None:
            self._base = make_teacher(pl_module.student, {"kind": "base"})

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the row, replacing it and all later ones if it was measured before."""
        data, stage = trainer.datamodule, stage_under_evaluation(trainer)
        if self._base is None or stage is None:
            return
        found = {}
        for task in data.tasks:
            batch = data.reader.evaluation_batch(task, task.validation[: self.num_prompts])
            with trainer.precision_plugin.val_step_context():
                found[task.name] = measure(pl_module, self._base, batch.prompts)
        row = {"stage": stage, "after": data.plan.tasks[stage - 1] if stage else None}
        row |= {"global_step": trainer.global_step, "tasks": found}
        self.add_row(trainer, pl_module, row)

    def record(self, module: Any, rows: Sequence[Any]) -> dict[str, Any]:
        """The content of ``drift.json``."""
        return labelled(module, rows, DEFINITIONS)

    def scalars(self, module: Any, rows: Sequence[Any]) -> dict[str, float]:
        """The last row's numbers, by task."""
        return {
            f"drift/{name}/{task}": numbers[name]
            for task, numbers in rows[-1]["tasks"].items()
            for name in DEFINITIONS
        }


@torch.no_grad()
def measure(module: Any, base: Teacher, prompts: list[TokenIds]) -> dict[str, float]:
    """The numbers of :data:`DEFINITIONS` on some prompts.

    Args:
        module: A method, with its student.
        base: Its model before any training.
        prompts: B token-id lists.
    """
    seeds = [mix_seed(Stream.DRIFT, module.seed, place) for place in range(len(prompts))]
    settings = replace(module.greedy, temperature=1.0)
    completions = module.generate(prompts, settings, seeds=seeds).completions
    positions = LossPositions.of(completions, device=module.device)
    with evaluation_mode(module.student):
        hidden = module.hidden_states(module.student, prompts, completions, positions)
    with base.to(module.device).scoring(module.student) as model:
        base_hidden = module.hidden_states(model, prompts, completions, positions)
    base_head = base.head(module.student_head)
    kl, entropy = kl_and_entropy(hidden, module.student_head, base_hidden, base_head)
    return {
        "kl_student_base": kl.mean().item(),
        "entropy": entropy.mean().item(),
        "completion_length": len(positions) / len(prompts),
    }
