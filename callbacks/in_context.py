"""The in-context check (section 3.2): is the teacher more accurate than the student?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from callbacks.stage_recorder import StageRecorder, labelled
from sdft.loss.hidden_states import LossPositions
from sdft.loss.probes import kl_and_entropy
from sdft.model.head import VocabularyHead
from sdft.model.modes import evaluation_mode
from sdft.model.teacher import Teacher
from sdft.tasks.tasks import Task
from sdft.types import DemonstrationBatch, Rollout, TokenIds

DEFINITIONS = {
    "student_accuracy": "Share of the rows that the student answers correctly from the prompt "
    "alone, greedily.",
    "teacher_accuracy": "The same for the teacher, which has the demonstration in context.",
    "kl_teacher_student": "KL(teacher || student) in nats, mean over the tokens of the teacher's "
    "answers; the student reads the prompt alone.",
    "student_length": "Mean number of tokens of the student's answers.",
    "teacher_length": "Mean number of tokens of the teacher's answers.",
}


@runtime_checkable
class SelfTaught(Protocol):
    """What the check needs of a module; other modules are not checked."""

    teacher: Teacher
    teacher_head: VocabularyHead


class InContextCheck(StageRecorder):
    """Compares teacher and student on the coming stage's task before it is trained.

    The rows are the task's first training rows, with the prompts that training will use; the
    stage has not seen them yet. Both answer greedily. If the teacher is not better,
    a warning says that self-distillation will not help. Results go to ``in_context.json``, to
    TensorBoard (x is the number of stages done) and to the terminal. ``validate`` checks every
    task, to the terminal alone. Weights, modes and random state do not change. Methods without
    a teacher are not checked.

    Args:
        num_rows: Largest number of rows to ask; 0 turns the check off.

    Raises:
        ValueError: ``num_rows`` is negative.
    """

    file = "in_context.json"

    def __init__(self, num_rows: int = 0) -> None:
        if num_rows < 0:
            raise ValueError(f"in_context.num_rows is {num_rows}; it must be 0 or more")
        super().__init__()
        self.num_rows = num_rows

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        """Check before a stage's first step, once the teacher has its initial weights."""
        data, stage = trainer.datamodule, trainer.datamodule.stage
        if not self._checks(pl_module) or trainer.global_step != data.plan.first_step(stage):
            return
        found = self._check(trainer, pl_module, data.tasks[stage])
        entry = {"stage": stage, "global_step": trainer.global_step, **found}
        self.add_row(trainer, pl_module, entry)

    def record(self, module: Any, rows: Sequence[Any]) -> dict[str, Any]:
        """The content of ``in_context.json``."""
        return labelled(module, rows, DEFINITIONS)

    def scalars(self, module: Any, rows: Sequence[Any]) -> dict[str, float]:
        """The last row's numbers."""
        return {f"in_context/{name}": rows[-1][name] for name in DEFINITIONS}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check every task, outside of a sequence."""
        outside = trainer.datamodule.num_stages_done is None
        if self._checks(pl_module) and outside and trainer.state.fn == TrainerFn.VALIDATING:
            for task in trainer.datamodule.tasks:
                self._check(trainer, pl_module, task)

    def _checks(self, module: L.LightningModule) -> bool:
        return self.num_rows > 0 and isinstance(module, SelfTaught)

    def _check(self, trainer: L.Trainer, module: Any, task: Task) -> dict[str, Any]:
        batch = trainer.datamodule.reader.train_batch(task.train[: self.num_rows])
        with trainer.precision_plugin.val_step_context():
            found = compare(module, batch, task)
        found = {"task": task.name, "num_rows": len(batch), **found}
        if trainer.is_global_zero:  # above a progress bar, where there is one
            tqdm.write("\n".join(filter(None, [in_words(found), advice(found)])))
        return found


@torch.no_grad()
def compare(module: Any, batch: DemonstrationBatch, task: Task) -> dict[str, float]:
    """The numbers of :data:`DEFINITIONS`, on the rows of one task."""
    student = module.generate(batch.student_prompts, module.greedy)
    prompts = module.read_by_teacher(batch)
    with module.teacher.scoring(module.student) as model:
        teacher = module.generate(prompts, module.greedy, model=model)
        positions = LossPositions.of(teacher.completions, device=module.device)
        hidden = module.hidden_states(model, prompts, teacher.completions, positions)
    with evaluation_mode(module.student):
        students_hidden = module.hidden_states(
            module.student, batch.student_prompts, teacher.completions, positions
        )
    kl, _ = kl_and_entropy(hidden, module.teacher_head, students_hidden, module.student_head)
    return {
        "student_accuracy": _accuracy(module, batch, task, batch.student_prompts, student),
        "teacher_accuracy": _accuracy(module, batch, task, prompts, teacher),
        "kl_teacher_student": kl.mean().item(),
        "student_length": student.num_tokens / len(batch),
        "teacher_length": teacher.num_tokens / len(batch),
    }


def _accuracy(
    module: Any,
    batch: DemonstrationBatch,
    task: Task,
    prompts: Sequence[TokenIds],
    rollout: Rollout,
) -> float:
    answers = module.answers(prompts, rollout)
    scores = [task.scorer(answer, row) for answer, row in zip(answers, batch.rows, strict=True)]
    return sum(scores) / len(scores)


def in_words(found: dict[str, Any]) -> str:
    """The result of a check in one line."""
    return (
        f"In-context check of {found['task']} ({found['num_rows']} rows): student "
        f"{found['student_accuracy']:.0%} correct, teacher with demonstration "
        f"{found['teacher_accuracy']:.0%}, KL(teacher || student) "
        f"{found['kl_teacher_student']:.2f} nats a token"
    )


def advice(found: dict[str, Any]) -> str | None:
    """A warning if the teacher is not better than the student; else None."""
    if found["teacher_accuracy"] > found["student_accuracy"]:
        return None
    return (
        f"Warning, {found['task']}: with the demonstration in context the teacher answers "
        f"{found['teacher_accuracy']:.0%} of {found['num_rows']} rows correctly, the student alone "
        f"{found['student_accuracy']:.0%}. A teacher that is not better has nothing to pass on, so "
        "SDFT will not help with this task; the paper finds this of models below 7B. Try another "
        "data.teacher_template, a larger model, or SFT"
    )
