"""A causal language model's output head: from final hidden states to vocabulary logits.

Some architectures do more than one matrix product: Gemma 2 soft-caps its logits, Granite
divides them, Cohere multiplies them. :class:`VocabularyHead` holds all that is needed to
compute the logits a few rows at a time, and :meth:`VocabularyHead.of` checks on the model at
hand that they are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SOFTCAP_FIELDS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
MULTIPLIER_FIELDS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISOR_FIELDS = ("logits_scaling",)
MULTIPLIES_BY_LOGITS_SCALING = ("hyperclovax",)
PROBE_LENGTH = 4


@dataclass(frozen=True, eq=False)
class VocabularyHead:
    """logits = softcap(multiplier * (hidden @ weight.T + bias)).

    Args:
        weight: (V, D), the model's own parameter, not a copy.
        bias: (V,) or None.
        multiplier: Factor of the projection; 1 for most architectures.
        softcap: Bound c of c * tanh(logits / c), or None.
        tied: The weight is also the input embedding.
    """

    weight: Tensor
    bias: Tensor | None = None
    multiplier: float = 1.0
    softcap: float | None = None
    tied: bool = False

    @classmethod
    def of(cls, model: nn.Module, *, check: bool = True) -> VocabularyHead:
        """The head of a transformers causal language model, with or without peft adapters.

        Args:
            model: Its output embedding must be a plain linear layer. The head keeps a reference
                to the layer's parameters: build it again if they are replaced, not when an
                optimizer updates them in place.
            check: Run the model on a few tokens and compare; costs one short forward pass.

        Raises:
            ValueError: The output layer is no plain linear layer, or the model's logits are not
                what this class computes from its final hidden states.
        """
        layer = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
            raise ValueError(
                f"the output layer of {model_name(model)} is {type(layer).__name__}, not a plain "
                "linear layer; leave it out of target_modules, modules_to_save and quantization"
            )
        multiplier, softcap = _scaling(text_config(model))
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        head = cls(
            weight=layer.weight,
            bias=layer.bias,
            multiplier=multiplier,
            softcap=softcap,
            tied=embedding.weight is layer.weight,
        )
        if check:
            head.check_against(model)
        return head

    @property
    def vocab_size(self) -> int:
        """V, counting padding rows of the weight."""
        return self.weight.shape[0]

    def finish(self, projected: Tensor) -> Tensor:
        """Logits from the raw projection (..., V), a new tensor unless nothing is to be done."""
        logits = projected if self.multiplier == 1.0 else projected * self.multiplier
        if self.softcap is None:
            return logits
        return (logits / self.softcap).tanh_().mul_(self.softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits at once, differentiable: (..., D) to (..., V)."""
        return self.finish(functional.linear(hidden, self.weight, self.bias))

    @torch.no_grad()
    def check_against(self, model: nn.Module) -> None:
        """Compare with ``model(...).logits`` on a few tokens.

        Raises:
            ValueError: They differ by more than rounding.
        """
        count = min(PROBE_LENGTH, self.vocab_size)
        tokens = torch.arange(count, device=self.weight.device).unsqueeze(0)
        with _evaluating(model):
            expected = model(input_ids=tokens, use_cache=False).logits.float()
            found = self.logits(final_hidden_states(model, input_ids=tokens)).float()
        tolerance = 1e-4 if self.weight.dtype in (torch.float32, torch.float64) else 3e-2
        error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        if not error <= tolerance:
            raise ValueError(
                f"the logits of {model_name(model)} are not multiplier * (hidden @ weight.T) with "
                f"a soft cap (relative error {error.item():.2g}, multiplier {self.multiplier}, "
                f"softcap {self.softcap}): this architecture's head does something that "
                "sdft.head.VocabularyHead does not know; add it there"
            )


def final_hidden_states(model: nn.Module, **inputs: Any) -> Tensor:
    """What the head reads, (B, T, D): the decoder's output after its final norm.

    Args:
        model: A transformers causal language model; peft adapters inside it take part.
        inputs: The decoder's inputs, such as ``input_ids`` and ``attention_mask``.
    """
    hidden: Tensor = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
    return hidden


def decoder_of(model: nn.Module) -> nn.Module:
    """The module between token ids and final hidden states, without the head."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    return decoder


def text_config(model: nn.Module) -> dict[str, Any]:
    """The language part of the model's configuration."""
    config: dict[str, Any] = model.config.get_text_config().to_dict()  # type: ignore[operator, union-attr]
    return config


def model_name(model: nn.Module) -> str:
    """The class of the model, as error messages show it."""
    return type(model).__name__


def _scaling(config: dict[str, Any]) -> tuple[float, float | None]:
    """Multiplier and soft cap of an architecture from the fields its configuration has."""
    multiplier = 1.0
    for name in MULTIPLIER_FIELDS:
        multiplier *= config.get(name) or 1.0
    for name in DIVISOR_FIELDS:
        factor = config.get(name) or 1.0
        multiplies = config["model_type"].startswith(MULTIPLIES_BY_LOGITS_SCALING)
        multiplier *= factor if multiplies else 1.0 / factor
    caps = [config[name] for name in SOFTCAP_FIELDS if config.get(name) is not None]
    return multiplier, (float(caps[0]) if caps else None)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode, each put back to its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
