"""Weights and settings as an export stores them; a check that it equals the trained model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sdft.model.limits import num_token_ids
from sdft.model.modes import evaluation_mode
from sdft.model.sharding import gathered_weights

BASE = ".base_layer"  # what peft inserts between an adapted layer's name and its weight's name
NUM_ROWS, NUM_TOKENS = 3, 6
# Allowed error of the logits, relative to the largest. In half precision the median over positions
# is compared, because the export is read in float32 and rounding may route a few tokens to other
# experts.
TOLERANCE = 5e-3
HALF_PRECISION_TOLERANCE = 0.1


@torch.no_grad()
def plain_weights(
    model: nn.Module, dtype: torch.dtype | None = None, *, keep: bool = True
) -> dict[str, Tensor]:
    """Copy every weight to host memory, with adapters merged, one tensor at a time.

    This is a collective if the model is sharded: every rank must call it, and one keeps the
    weights.

    Args:
        model: Causal language model, sharded or not, with or without adapters; it is not changed.
        dtype: Type that weights are cast to before they are gathered; None keeps their types,
            except that weights with adapters become float32.
        keep: Whether this rank keeps the weights; other ranks take part and return none.

    Returns:
        Contiguous tensors by name, tied ones once. They may share memory with the model if nothing
        had to be gathered, cast or moved.
    """
    found = {}
    for name, weight in _plain(model, dtype):
        if keep:
            found[name] = weight.cpu().contiguous()
    return found


def _plain(model: nn.Module, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    from peft.tuners.lora import LoraLayer  # imported late so that --help does not import peft

    adapted = {name: each for name, each in model.named_modules() if isinstance(each, LoraLayer)}
    saved = model.state_dict(keep_vars=True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        layer_name, is_base, _ = name.rpartition(f"{BASE}.")
        if name not in saved or (not is_base and name.rpartition(".lora_")[0] in adapted):
            continue
        weight = tensor.detach()
        if is_base and name.endswith(".weight") and layer_name in adapted:
            weight = weight.float() + _folded(adapted[layer_name])
        if dtype is not None and weight.is_floating_point():
            weight = weight.to(dtype)
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        yield name.replace(f"{BASE}.", "."), weight


def _folded(layer: Any) -> Tensor:
    """The sum that the active adapters add to the layer's weight, in float32."""
    added: list[Tensor] = [layer.get_delta_weight(name) for name in layer.active_adapters]
    return torch.stack(added).sum(0).float()


@torch.no_grad()
def probe_logits(model: PreTrainedModel) -> Tensor:
    """Logits of fixed token ids, (3, 6, V) in float32 on the host, without autocast.

    This is a collective if the model is sharded.
    """
    size = NUM_ROWS * NUM_TOKENS
    ids = (1 + 7919 * torch.arange(size, device=model.device)) % num_token_ids(model)
    off = torch.autocast(model.device.type, enabled=False)
    with gathered_weights(model), evaluation_mode(model), off:
        logits: Tensor = model(input_ids=ids.view(NUM_ROWS, -1), use_cache=False).logits
    return logits.float().cpu()


def write_settings_of_version_4(directory: Path) -> None:
    """Write an export's settings under transformers 4's names too; version 5 reads both.

    llama.cpp's converter and others run transformers 4. It does not know the class that version 5
    names for most tokenizers, nor a list of extra special tokens, and it takes a rotary base of
    10,000 where it finds none.

    Args:
        directory: The export, with model and tokenizer as version 5 wrote them.
    """
    path = directory / "config.json"
    config = json.loads(path.read_text("utf-8"))
    rotary = config.get("rope_parameters") or {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rotary:
            config.setdefault(name, rotary[name])
    if rotary.get("rope_type", "default") != "default":
        config.setdefault("rope_scaling", rotary)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")

    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def check_export(model: PreTrainedModel, expected: Tensor, directory: Path) -> None:
    """Load an export with transformers and compare its logits with the trained model's.

    Args:
        model: The model that was exported; its weights are not read.
        expected: :func:`probe_logits` of that model.
        directory: The export.

    Raises:
        RuntimeError: The logits differ by more than rounding.
    """
    kind: Any = type(model)
    with torch.random.fork_rng():  # weights missing from the files would be drawn
        exported = kind.from_pretrained(directory, dtype=torch.float32)
    errors = (probe_logits(exported) - expected).abs().amax(-1) / expected.abs().max()
    precise = all(each.dtype.itemsize >= 4 for each in model.parameters())
    error = float(errors.max() if precise else errors.median())
    limit = TOLERANCE if precise else HALF_PRECISION_TOLERANCE
    if not error <= limit:
        raise RuntimeError(
            f"the export is not the trained model: its logits differ by {error:.2g} of the largest "
            f"on a few tokens, so nothing was written; resume with --export.enabled=false, and "
            f"take the weights of {kind.__name__} from the checkpoint"
        )
