"""Self-Distillation Fine-Tuning in plain torch and transformers (arXiv 2601.19897).

docs/reference.md describes each public name. A name is imported from its module on first use, so
that ``import sdft`` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "sdft.types": ("Demonstration", "DemonstrationBatch", "EvaluationBatch", "Message", "Rollout"),
    "sdft.seeds": ("Stream", "mix_seed"),
    "sdft.stages": ("StagePlan",),
    "sdft.model.pretrained": ("LoadedModel", "load_model", "save_model"),
    "sdft.model.lora": ("LoRA",),
    "sdft.model.head": ("VocabularyHead",),
    "sdft.model.teacher": ("Teacher", "make_teacher"),
    "sdft.model.teacher_options": ("TeacherOptions",),
    "sdft.rollout.engine_registry": ("make_engine",),
    "sdft.rollout.request": ("RolloutRequest", "SamplingSettings"),
    "sdft.loss.hidden_states": ("LossPositions", "completion_hidden_states"),
    "sdft.loss.divergences": ("Divergence",),
    "sdft.loss.divergence_registry": ("make_divergence",),
    "sdft.loss.reductions": ("importance_weights", "reduction_weights"),
    "sdft.loss.distillation": ("cross_entropy_loss", "distillation_loss", "token_logprobs"),
    "sdft.scorers.scorer_registry": ("Scorer", "get_scorer"),
    "sdft.tasks.task_spec": ("TaskSpec",),
    "sdft.tasks.tasks": ("Task", "load_tasks"),
    "sdft.tasks.prompting": ("TeacherTemplate", "student_messages"),
    "sdft.evaluation.metrics": (
        "average_accuracy",
        "backward_transfer",
        "forgetting",
        "forward_transfer",
        "learning_accuracy",
        "pass_at_k",
    ),
    "sdft.sandbox.sandbox": ("run_python",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sdft' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
