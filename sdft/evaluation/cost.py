"""Measure the cost of a training step: seconds by phase, and FLOPs of its passes.

Only the FLOPs of the models on real tokens count. Padding, recomputation, rejected drafts and
sampling do not, so that the count measures the method rather than its implementation.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sdft.types import TokenIds


class LapClock:
    """Measures seconds by phase: each call to :meth:`lap` ends a phase."""

    def __init__(self) -> None:
        self.start(torch.device("cpu"))

    def start(self, device: torch.device) -> None:
        """Reset the clock for a new step.

        Args:
            device: Device of the step; every call waits for the work queued on a CUDA device.
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
    """The sizes of a model that determine the FLOPs of a pass.

    Args:
        body: Number of weights that every token is multiplied by, without embedding and head.
        trained_body: Number of these that are trained.
        head: Number of weights of the head, V times D.
        trained_head: The same if they are trained, else 0.
        attention: Number of layers times number of heads times head dimension.
    """

    body: int
    trained_body: int
    head: int
    trained_head: int
    attention: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape | None:
        """The shape of a dense transformer; None if the model is not known to be one."""
        config = model.config.get_text_config()
        layers, heads, width = (
            getattr(config, name, None)
            for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        matrices = _matrices(model)
        if matrices is None or not (layers and heads and width):
            return None
        head: Tensor = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        return cls(
            body=sum(each.numel() for each in matrices),
            trained_body=sum(each.numel() for each in matrices if each.requires_grad),
            head=head.numel(),
            trained_head=head.numel() if head.requires_grad else 0,
            attention=layers * heads * (getattr(config, "head_dim", None) or width // heads),
        )

    def flops(self, lengths: Iterable[int], num_projected: int, *, gradient: bool) -> float:
        """FLOPs of reading B sequences and projecting some of their positions to the vocabulary.

        A multiply-add counts as two. A backward pass costs as much as the forward pass for the
        activations, and once more for the weights that are trained.

        Args:
            lengths: B numbers of tokens.
            num_projected: Positions whose logits are computed.
            gradient: Whether a backward pass follows.
        """
        body, head, attention = self.body, self.head, 2 * self.attention
        if gradient:
            body, head = 2 * body + self.trained_body, 2 * head + self.trained_head
            attention *= 3  # both factors of its products are activations
        flops = head * num_projected
        for read in lengths:
            attended = read * (read + 1) // 2  # pairs of a position and one before it, or itself
            flops += body * read + attention * attended
        return 2.0 * flops


def _matrices(model: PreTrainedModel) -> list[Tensor] | None:
    """Weights that every token is multiplied by; None if the model also has others."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    matrices: list[Tensor] = []
    for name, module in model.named_modules():
        own = [each for each in module.parameters(recurse=False) if each.ndim > 1]
        if not own or module is head or isinstance(module, nn.Embedding):
            continue
        if "expert" in name or not isinstance(module, nn.Linear | Conv1D):
            return None
        matrices += own
    return matrices


class Passes:
    """Adds up the FLOPs of a training step's passes, by purpose.

    Training methods report each pass that they run.
    """

    def __init__(self) -> None:
        self._shapes: WeakKeyDictionary[PreTrainedModel, ModelShape | None] = WeakKeyDictionary()
        self.start()

    def start(self) -> None:
        """Reset the counts for a new step."""
        self.flops: dict[str, float | None] = {}  # by purpose; None if unknown
        self.num_sampled = 0  # tokens

    def sampled(
        self,
        model: PreTrainedModel,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
    ) -> None:
        """Report completions drawn from a model: prompts read once, and logits of every token."""
        num_tokens = sum(map(len, completions))
        self.num_sampled += num_tokens
        self.read("rollout", model, prompts, completions, num_tokens, gradient=False)

    def read(
        self,
        purpose: str,
        model: PreTrainedModel,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
        num_projected: int,
        *,
        gradient: bool,
    ) -> None:
        """Report a pass over B sequences.

        Args:
            purpose: Purpose of the pass: rollout, teacher, student, …
            model: The model that is run.
            prompts: B token-id lists.
            completions: B token-id lists; the last token of each is predicted, not read.
            num_projected: Positions that are projected to the vocabulary.
            gradient: Whether a backward pass follows.
        """
        rows = zip(prompts, completions, strict=True)
        lengths = [len(prompt) + len(completion) - 1 for prompt, completion in rows]
        self._add(purpose, model, lengths, num_projected, gradient)

    def projected(
        self, purpose: str, model: PreTrainedModel, num_projected: int, *, gradient: bool
    ) -> None:
        """Report that positions of a pass were projected to the vocabulary once more."""
        self._add(purpose, model, [], num_projected, gradient)

    def _add(
        self,
        purpose: str,
        model: PreTrainedModel,
        lengths: list[int],
        num_projected: int,
        gradient: bool,
    ) -> None:
        shape = self.shape_of(model)
        known = None if shape is None else shape.flops(lengths, num_projected, gradient=gradient)
        self.flops[purpose] = plus(self.flops.get(purpose, 0.0), known)

    def shape_of(self, model: PreTrainedModel) -> ModelShape | None:
        """The model's shape, computed once."""
        if model not in self._shapes:
            self._shapes[model] = ModelShape.of(model)
        return self._shapes[model]


def plus(one: float | None, other: float | None) -> float | None:
    """The sum; None if either is unknown."""
    return None if one is None or other is None else one + other
