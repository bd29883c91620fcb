"""What a training step costs: seconds by phase, and floating-point operations.

Operations are those of the model itself on real tokens: padding, recomputation and sampling noise
do not count, so that they measure the method rather than its implementation.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sdft.types import DemonstrationBatch, Rollout, TokenIds

# A backward pass costs one forward pass for the activations and one for the weights, if trained.
PASSES_TO_TRAIN_WEIGHTS = 3
PASSES_TO_TRAIN_ADAPTERS = 2


class LapClock:
    """Attributes the time between two calls to the phase that ends with the second."""

    def __init__(self) -> None:
        self.start(torch.device("cpu"))

    def start(self, device: torch.device) -> None:
        """Forget the last step.

        Args:
            device: CUDA is waited for at every call, since its work is only queued.
        """
        self._device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def lap(self, phase: str) -> None:
        """Attribute the time since the last call to ``phase``."""
        now = self._now()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the operations of a forward pass depend on.

    Args:
        body: Weights that every token is multiplied with, embedding and head left out.
        head: Weights of the head, V times D.
        attention: Layers times heads times the width of a head.
        training_passes: What forward and backward together cost, in forward passes.
    """

    body: int
    head: int
    attention: int
    training_passes: int = PASSES_TO_TRAIN_WEIGHTS

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """The shape of a dense causal language model."""
        config = model.config.get_text_config().to_dict()
        heads = config["num_attention_heads"]
        width = config.get("head_dim") or config["hidden_size"] // heads
        head: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
        tables = {id(table): table.numel() for table in (head, embedding)}
        parameters = list(model.parameters())
        whole = all(parameter.requires_grad for parameter in parameters)
        return cls(
            body=sum(each.numel() for each in parameters) - sum(tables.values()),
            head=head.numel(),
            attention=config["num_hidden_layers"] * heads * width,
            training_passes=PASSES_TO_TRAIN_WEIGHTS if whole else PASSES_TO_TRAIN_ADAPTERS,
        )

    def forward(self, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> float:
        """Operations of reading B sequences and projecting every completion position.

        The last completion token is predicted but not read. A multiply-add counts as two.
        """
        return float(sum(map(self._forward, map(len, prompts), map(len, completions))))

    def _forward(self, prompt: int, completion: int) -> int:
        read = prompt + completion - 1
        attended = read * (read + 1) // 2  # pairs of a position and one before it, or itself
        return 2 * (self.body * read + 2 * self.attention * attended + self.head * completion)


def step_operations(
    shape: ModelShape, batch: DemonstrationBatch, rollout: Rollout | None
) -> dict[str, float]:
    """Operations of one training step by phase.

    Args:
        shape: Of student and teacher alike.
        batch: What the step trained on.
        rollout: The step's completions, or None for a method that imitates the demonstrations.

    Returns:
        ``rollout``, ``teacher`` and ``student`` (forward and backward), and ``sft``: what
        imitating the same demonstrations costs.
    """
    prompts = batch.student_prompts
    sft = shape.training_passes * shape.forward(prompts, batch.demonstrations)
    if rollout is None:
        return {"rollout": 0.0, "teacher": 0.0, "student": sft, "sft": sft}
    rows = zip(prompts, rollout.completions, rollout.logprobs, strict=True)
    drawn = [(prompt, completion) for prompt, completion, logprobs in rows if logprobs]
    return {
        "rollout": shape.forward(*zip(*drawn, strict=True)) if drawn else 0.0,
        "teacher": shape.forward(batch.teacher_prompts, rollout.completions),
        "student": shape.training_passes * shape.forward(prompts, rollout.completions),
        "sft": sft,
    }


def operations_ratio(operations: dict[str, float]) -> float:
    """Operations of all phases, relative to SFT on the same examples."""
    spent: Iterable[float] = (operations[phase] for phase in ("rollout", "teacher", "student"))
    return sum(spent) / operations["sft"]
