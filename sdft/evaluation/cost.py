"""What a training step costs: seconds by phase, and the FLOPs of the passes that it makes.

FLOPs are those of the models themselves on real tokens: padding, recomputation, rejected drafts and
sampling noise do not count, so that they measure the method rather than its implementation.
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
    """What the FLOPs of a pass depend on.

    Args:
        body: Weights that every token is multiplied with, embedding and head left out.
        trained_body: Of these, weights that are trained.
        head: Weights of the head, V times D.
        trained_head: The same where they are trained, else 0.
        attention: Layers times heads times the width of a head.
    """

    body: int
    trained_body: int
    head: int
    trained_head: int
    attention: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape | None:
        """The shape of a dense transformer; None for what is not known to be one."""
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
    """Weights that every token is multiplied with; None where a model has others too."""
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
    """The passes of a training step: which model, over how many tokens, with or without gradient.

    Methods report each pass that they make, by what it is for; the tracker of costs adds them up.
    """

    def __init__(self) -> None:
        self._shapes: WeakKeyDictionary[PreTrainedModel, ModelShape | None] = WeakKeyDictionary()
        self.start()

    def start(self) -> None:
        """Forget the last step."""
        self.flops: dict[str, float | None] = {}  # by what they are for; None for unknown
        self.num_sampled = 0  # tokens

    def sampled(
        self,
        model: PreTrainedModel,
        prompts: Sequence[TokenIds],
        completions: Sequence[TokenIds],
    ) -> None:
        """Report completions drawn from a model: every token's logits, prompts read once."""
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
            purpose: What it is for: rollout, teacher, student, …
            model: Who reads.
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
        """The model's shape, looked up once."""
        if model not in self._shapes:
            self._shapes[model] = ModelShape.of(model)
        return self._shapes[model]


def plus(one: float | None, other: float | None) -> float | None:
    """The sum; None where either is unknown."""
    return None if one is None or other is None else one + other
