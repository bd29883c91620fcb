"""Shard a model with FSDP2, gather sharded weights, and measure gradients, sharded or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_utils import LoadStateDictConfig, _get_resolved_checkpoint_files

NUM_NAMED = 3  # missing weights that an error message names


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward pass is a collective that all ranks must join."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard the model's weights over the ranks (FSDP2); a second call changes nothing.

    Each decoder layer is gathered when a forward or backward pass reaches it and freed afterwards;
    so is the rest of the decoder. The output head is not run as a module: its parameters stay
    sharded, and :func:`gathered_parameter` gathers them where :mod:`sdft.model.head` reads them.

    Args:
        model: Causal language model with the same weights on every rank, or on the meta device.
        mesh: One-dimensional mesh of the ranks.
    """
    if is_sharded(model):
        return
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    embedding, head = _ends(model)
    tied = head.weight is embedding.weight
    kinds = set(model._no_split_modules or ())
    layers = [each for each in decoder.modules() if type(each).__name__ in kinds]
    for unit in (*layers, decoder):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    if tied:
        head.weight = embedding.weight
    for name, parameter in list(head.named_parameters()):
        if not isinstance(parameter, DTensor):
            shards = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            setattr(head, name, nn.Parameter(shards, requires_grad=parameter.requires_grad))


def load_shards(model: PreTrainedModel) -> None:
    """Read this rank's shards of a model that was sharded on the meta device.

    They are read from the files that the model's shape came from; of a safetensors file only the
    slices that this rank holds. This is not a collective.

    Args:
        model: Made by :func:`sdft.model.pretrained.load_model` under ``torch.device("meta")``.

    Raises:
        ValueError: The files lack a weight.
    """
    shards: Any = next(model.parameters())
    name, mesh_device = model.config._name_or_path, shards.device_mesh.device_type
    index = f":{torch.get_device_module().current_device()}" if mesh_device != "cpu" else ""
    files, sharded_metadata = _get_resolved_checkpoint_files(
        name,
        variant=None,
        gguf_file=None,
        use_safetensors=True,
        user_agent=None,
        is_remote_code=model.is_remote_code(),
        download_kwargs={"revision": getattr(model.config, "_commit_hash", None)},
    )
    loading = LoadStateDictConfig(
        name,
        use_safetensors=True,
        sharded_metadata=sharded_metadata,
        device_map={"": mesh_device + index},
        dtype=model.dtype,
        weight_mapping=get_model_conversion_mapping(model),  # type: ignore[arg-type]
    )
    module: Any
    for module in model.modules():  # building the shape marked their buffers as initialised
        module._is_hf_initialized = False
    found, _ = model._load_pretrained_model(model, None, files, loading)
    missing = model._finalize_model_loading(model, loading, found).missing_keys
    if missing:
        raise ValueError(f"the weights of {name} lack {', '.join(sorted(missing)[:NUM_NAMED])}")


@contextmanager
def gathered_head(model: PreTrainedModel) -> Iterator[None]:
    """Run a block with a gathered output head on this rank, for passes of all ranks together."""
    head = _ends(model)[1]
    shards = dict(head.named_parameters())
    with torch.no_grad():
        gathered = {name: gathered_parameter(each) for name, each in shards.items()}
    _put(head, {name: nn.Parameter(each, requires_grad=False) for name, each in gathered.items()})
    try:
        yield
    finally:
        _put(head, shards)


@contextmanager
def gathered_weights(model: PreTrainedModel) -> Iterator[None]:
    """Run a block with gathered weights on this rank, for forward passes without gradient.

    Entering is a collective if the model is sharded. Passes inside the block are not: each rank
    may run as many as it needs.
    """
    if not is_sharded(model):
        yield
        return
    embedding, head = _ends(model)
    shards = dict(head.named_parameters())
    tied = {"weight"} if head.weight is embedding.weight else set()
    units = [each for each in model.modules() if isinstance(each, FSDPModule)]
    with torch.inference_mode(False), torch.no_grad():  # training reads the same buffers later
        gathered = {
            name: nn.Parameter(each.full_tensor(), requires_grad=False)
            for name, each in shards.items()
            if name not in tied
        }
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
    _put(head, gathered | dict.fromkeys(tied, embedding.weight))
    try:
        yield
    finally:
        _put(head, shards)
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def gathered_parameter(parameter: Tensor) -> Tensor:
    """Gather a parameter on this rank if it is sharded; differentiable.

    This is a collective if the parameter is sharded: every rank must call it and run the backward
    pass. The gradient of a shard is averaged over the ranks, as FSDP does for the parameters it
    gathers itself.
    """
    if not isinstance(parameter, DTensor):
        return parameter
    gathered: Tensor = _Gather.apply(parameter)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    """All-gather forward, averaging reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, parameter: DTensor) -> Tensor:
        ctx.mesh, ctx.placements = parameter.device_mesh, parameter.placements
        return parameter.full_tensor()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> DTensor:
        partial = [Partial()] * ctx.mesh.ndim
        summed = DTensor.from_local(gradient, ctx.mesh, partial, run_check=False)
        averaged: DTensor = summed.redistribute(placements=ctx.placements) / ctx.mesh.size()
        return averaged


def _ends(model: PreTrainedModel) -> tuple[Any, Any]:
    """The input embedding and the output head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return model.get_input_embeddings(), head


def _put(layer: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        setattr(layer, name, parameter)


def from_all_ranks(value: Any) -> list[Any]:
    """The value of every rank, in rank order; a collective if there are several ranks."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def gradient_norm(model: nn.Module) -> Tensor:
    """Euclidean norm of this rank's part of all gradients: (), float64, possibly infinite."""
    norms = _norms(model, 2.0)
    return norms.double().norm() if len(norms) else norms.double().sum()


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether this rank's gradients have no NaN or infinity, however large the entries are."""
    return bool(_norms(model, float("inf")).isfinite().all())


def _own(gradient: Tensor) -> Tensor:
    """This rank's part of a sharded gradient."""
    if isinstance(gradient, DTensor):
        return gradient.to_local()
    return gradient


def _norms(model: nn.Module, order: float) -> Tensor:
    """Norm of each gradient, over the parameters that have one, in float32 or float64."""
    gradients = [_own(each.grad) for each in model.parameters() if each.grad is not None]
    if not gradients:
        return torch.zeros(0)
    double = any(each.dtype == torch.float64 for each in gradients)
    dtype = torch.float64 if double else torch.float32
    return torch.stack(torch._foreach_norm(gradients, ord=order, dtype=dtype))
