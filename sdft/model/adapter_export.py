"""Adapters as a folder that peft reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import nn

from sdft.model.pretrained import staged_directory
from sdft.model.sharding import gathered_parameter
from sdft.runs.files import write_bytes_atomically

ADAPTER = "default"  # what peft calls the one adapter of a model
PREFIX = "base_model.model."  # how the names in a peft folder begin


@torch.no_grad()
def save_adapters(model: nn.Module, base: str, directory: Path, rank: int = 0) -> None:
    """Write the adapters alone, for ``PeftModel.from_pretrained(base_model, directory)``.

    Writes nothing where the model has none. A collective where the model is sharded: the first
    rank writes.

    Args:
        model: With adapters in it, or without.
        base: What ``AutoModelForCausalLM.from_pretrained`` loads the backbone from.
        directory: Where to.
        rank: This process's.
    """
    adapted: dict[str, Any] = {
        name: each for name, each in model.named_modules() if isinstance(each, LoraLayer)
    }
    weights = {
        PREFIX + name.replace(f".{ADAPTER}.", "."): gathered_parameter(parameter).cpu().contiguous()
        for name, parameter in model.named_parameters()
        if name.rpartition(".lora_")[0] in adapted
    }
    if rank != 0 or not adapted:
        return
    layer = next(iter(adapted.values()))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        inference_mode=True,
        r=layer.r[ADAPTER],
        lora_alpha=layer.lora_alpha[ADAPTER],
        target_modules=sorted({name.rpartition(".")[2] for name in adapted}),
    )
    with staged_directory(directory) as staging:
        config.save_pretrained(str(staging))
        write_bytes_atomically(staging / "adapter_model.safetensors", save(weights))
