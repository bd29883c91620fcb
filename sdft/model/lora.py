"""Low-rank adapters on a frozen backbone (LoRA), through peft.

The adapters are inserted into the transformers model, so that sampling, scoring and saving use it
as before. There is one copy of the backbone: student and teacher differ only in their adapters.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from sdft.model.sharding import gathered_parameter
from sdft.runs.files import write_bytes_atomically
from sdft.seeds import Stream, mix_seed

BACKBONE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ADAPTER = "default"  # peft's name for a model's only adapter
PREFIX = "base_model.model."  # prefix of the weights' names in a directory that peft loads


@dataclass(frozen=True, slots=True)
class LoRA:
    """Train low-rank adapters instead of the weights.

    An adapted layer computes W x + (alpha / r) · B A x, with A (r, in) and B (out, r) trained in
    float32; B starts at zero, so that training starts from the unchanged model.

    Args:
        r: Rank of the adapters.
        alpha: The adapters' product is multiplied by alpha / r.
        dropout: Dropout of the adapters' input while the student is scored.
        target_modules: Names of the layers to adapt, or all-linear: every linear layer but the
            output head.
        backbone_dtype: Type of the frozen backbone's weights: float32 or bfloat16.

    Raises:
        ValueError: A value is out of range.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    backbone_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        dtypes = " or ".join(BACKBONE_DTYPES)
        checks = {
            "r": (self.r >= 1, "at least 1"),
            "alpha": (self.alpha > 0, "above 0"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
            "backbone_dtype": (self.backbone_dtype in BACKBONE_DTYPES, dtypes),
        }
        for name, (holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"lora.{name} is {getattr(self, name)}; it must be {expected}")


def add_adapters(model: PreTrainedModel, lora: LoRA, seed: int) -> None:
    """Freeze the model and insert adapters, whose initial values depend only on the seed.

    Raises:
        ValueError: An adapted layer shares its weight with another layer, as an embedding tied to
            the output head does.
    """
    from peft import LoraConfig, inject_adapter_in_model  # late: slow, often unused

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    with torch.random.fork_rng():
        torch.manual_seed(mix_seed(Stream.ADAPTER_START, seed))
        inject_adapter_in_model(config, model)
    _require_own_weights(model)
    for parameter in trained_parameters(model):
        parameter.data = parameter.data.float()


def _require_own_weights(model: nn.Module) -> None:
    """Reject adapters that could not be merged into a weight without changing another layer."""
    owners = Counter(
        id(weight) for module in model.modules() for weight in module.parameters(recurse=False)
    )
    for name, layer in _adapted_layers(model):
        if owners[id(layer.get_base_layer().weight)] > 1:
            raise ValueError(
                f"lora.target_modules names {name}, whose weight another layer shares, as tied "
                "embeddings do: adapters of one of them cannot be folded into both; leave it out, "
                "or train all weights (lora: null)"
            )


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes: the adapters if there are any, else every weight."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Run a block with the adapters disabled."""
    layers = [layer for _, layer in _adapted_layers(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def backbone_state(model: nn.Module) -> dict[str, Tensor]:
    """The frozen entries of an adapted model's state dict."""
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if not tensor.requires_grad}


def digest(tensors: dict[str, Tensor]) -> str:
    """A short hexadecimal digest of named tensors: their names, types and every byte."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def save_adapters(model: nn.Module, base: str, directory: Path, rank: int = 0) -> None:
    """Write only the adapters, for peft's ``PeftModel.from_pretrained(base_model, directory)``.

    Writes nothing if the model has none. This is a collective if the model is sharded; the first
    rank writes.

    Args:
        model: The model, with or without adapters.
        base: Name or directory that ``AutoModelForCausalLM.from_pretrained`` loads the backbone
            from.
        directory: Directory to write to.
        rank: Rank of this process.
    """
    adapted: dict[str, Any] = dict(_adapted_layers(model))
    weights = {}
    for name, parameter in model.named_parameters():
        if name.rpartition(".lora_")[0] in adapted:
            kept = gathered_parameter(parameter.detach()).cpu().contiguous()
            weights[PREFIX + name.replace(f".{ADAPTER}.", ".")] = kept
    if rank != 0 or not adapted:
        return
    layer = next(iter(adapted.values()))
    from peft import LoraConfig

    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        r=layer.r[ADAPTER],
        lora_alpha=layer.lora_alpha[ADAPTER],
        target_modules=sorted({name.rpartition(".")[2] for name in adapted}),
    )
    write_bytes_atomically(directory / "adapter_model.safetensors", save(weights))
    config.save_pretrained(str(directory))


def _adapted_layers(model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [
        (name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)
    ]
