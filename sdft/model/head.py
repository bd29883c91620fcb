"""A causal language model's output head: from final hidden states to vocabulary logits.

Some architectures do more than one matrix product: Gemma 2 soft-caps its logits, Granite
divides them, Cohere multiplies them. :class:`VocabularyHead` has everything needed to compute
the logits a few rows at a time, and :meth:`VocabularyHead.of` checks that the result equals the
logits of the given model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sdft.model.modes import evaluation_mode
from sdft.model.sharding import gathered_parameter

SOFTCAP_FIELDS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
MULTIPLIER_FIELDS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISOR_FIELD = "logits_scaling"
MULTIPLIES_BY_DIVISOR_FIELD = "hyperclovax"
PROBE_LENGTH = 4


@dataclass(frozen=True, eq=False)
class VocabularyHead:
    """Logits = softcap(multiplier * (hidden @ weight.T + bias)).

    Args:
        layer: The model's own output layer, not a copy; its parameters are looked up at each use.
        multiplier: Factor applied to the projection; 1 for most architectures.
        softcap: The bound c of c * tanh(logits / c), or None.
        tied: Whether the weight is also the input embedding.
    """

    layer: nn.Linear
    multiplier: float = 1.0
    softcap: float | None = None
    tied: bool = False

    @classmethod
    def of(cls, model: nn.Module, *, check: bool = True) -> VocabularyHead:
        """The head of a transformers causal language model, with or without peft adapters.

        Args:
            model: Its output layer must be a plain linear layer.
            check: Run the model on a few tokens and compare; costs one short forward pass. A model
                without weights, on the meta device, is not checked.

        Raises:
            ValueError: The output layer is not a plain linear layer, or the model's logits differ
                from those this class computes from its final hidden states.
        """
        layer = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
            raise ValueError(
                f"the output layer of {type(model).__name__} is {type(layer).__name__}, not a "
                "plain linear layer: leave it out of adapters, modules_to_save and quantization"
            )
        multiplier, softcap = _scaling(_text_config(model))
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        head = cls(layer, multiplier, softcap, tied=embedding.weight is layer.weight)
        if check and not layer.weight.is_meta:
            head.check_against(model)
        return head

    @property
    def weight(self) -> Tensor:
        """The layer's weight, (V, D); sharded if the model is."""
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The layer's bias, (V,), or None; sharded if the model is."""
        return self.layer.bias

    @property
    def vocab_size(self) -> int:
        """Vocabulary size V, including the weight's padding rows."""
        return self.layer.weight.shape[0]

    def whole(self) -> tuple[Tensor, Tensor | None]:
        """The gathered weight and bias on this rank, differentiable."""
        bias = self.bias
        return gathered_parameter(self.weight), None if bias is None else gathered_parameter(bias)

    def finish(self, projected: Tensor) -> Tensor:
        """Logits from the raw projection, both (..., V)."""
        logits = projected if self.multiplier == 1.0 else projected * self.multiplier
        if self.softcap is None:
            return logits
        return (logits / self.softcap).tanh() * self.softcap

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits at once, differentiable: (..., D) to (..., V)."""
        return self.finish(functional.linear(hidden, *self.whole()))

    @torch.no_grad()
    def check_against(self, model: nn.Module) -> None:
        """Compare with ``model(...).logits`` on a few tokens.

        Raises:
            ValueError: They differ by more than rounding.
        """
        count = min(PROBE_LENGTH, self.vocab_size)
        tokens = torch.arange(count, device=self.weight.device).unsqueeze(0)
        with evaluation_mode(model):
            expected = model(input_ids=tokens, use_cache=False).logits.float()
            found = self.logits(final_hidden_states(model, input_ids=tokens)).float()
        tolerance = 1e-4 if self.weight.dtype.itemsize >= 4 else 3e-2
        error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        if not error <= tolerance:
            raise ValueError(
                f"the logits of {type(model).__name__} are not what VocabularyHead computes from "
                f"its final hidden states (relative error {float(error):.2g} with multiplier "
                f"{self.multiplier}, softcap {self.softcap}): its head does something more; teach "
                "it to sdft.model.head"
            )


def final_hidden_states(model: nn.Module, **inputs: Any) -> Tensor:
    """The head's input: the decoder's output after its final norm, (B, T, D).

    Args:
        model: A transformers causal language model, with or without peft adapters.
        inputs: The decoder's inputs, such as ``input_ids`` and ``attention_mask``.
    """
    hidden: Tensor = decoder_of(model)(**inputs, use_cache=False).last_hidden_state
    return hidden


def decoder_of(model: nn.Module) -> nn.Module:
    """The module between token ids and final hidden states: the model without its head."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    return decoder


def _text_config(model: nn.Module) -> dict[str, Any]:
    """The language part of the model's configuration."""
    config: dict[str, Any] = model.config.get_text_config().to_dict()  # type: ignore[operator,union-attr]
    return config


def _scaling(config: dict[str, Any]) -> tuple[float, float | None]:
    """Multiplier and soft cap, from the fields that the model's configuration has."""
    multiplier = 1.0
    for name in MULTIPLIER_FIELDS:
        multiplier *= config.get(name) or 1.0
    divisor = config.get(DIVISOR_FIELD) or 1.0
    multiplies = config["model_type"].startswith(MULTIPLIES_BY_DIVISOR_FIELD)
    multiplier *= divisor if multiplies else 1.0 / divisor
    caps = [float(config[name]) for name in SOFTCAP_FIELDS if config.get(name) is not None]
    return multiplier, caps[0] if caps else None
