"""Linear weights in the order that few rows want, as decoding token by token has them.

On a processor, a product of a few rows with a large matrix spends most of its time on bringing
the matrix into the order the kernel wants, again at every call. Two remedies:

- :func:`store_by_columns` keeps the weights themselves in that order, for good. Training,
  scoring and the optimizer do not mind: it is the same tensor with other strides;
- :func:`packed_linears` holds reordered copies for as long as a block lasts, for the layers that
  cannot be stored so: an output head tied to the embedding, which is read by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

EXPECTED_ROWS = 8  # a hint for the kernel's choice of order; other sizes work as well


def store_by_columns(model: nn.Module) -> None:
    """Reorder the fp32 linear weights of a model on a processor; values and shapes stay.

    Embeddings, and heads tied to them, keep their order, as does whatever is sharded.
    """
    embeddings = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    for layer in _linears(model):
        weight = layer.weight
        if _on_cpu(weight) and id(weight) not in embeddings and not _by_columns(weight):
            weight.data = weight.data.t().contiguous().t()


def copy_out_of_files(model: nn.Module) -> None:
    """Copy the weights on a processor that :func:`store_by_columns` left where they were.

    One tensor left in the file that a model was read from keeps all of the file in memory.
    """
    for weight in model.parameters():
        if _on_cpu(weight) and weight.is_contiguous():
            weight.data = weight.data.clone()


def like_parameters(state: dict[int, dict[str, Tensor]], parameters: list[Tensor]) -> None:
    """Give an optimizer's state the strides of the parameters it belongs to, in place.

    The fused optimizers walk through parameter and state side by side in memory, so a state
    that was saved with other strides would be paired with the wrong weights.

    Args:
        state: ``state`` of an optimizer's state dict.
        parameters: The optimizer's parameters in order; the state's keys are indices into them.
    """
    for index, entries in state.items():
        parameter = parameters[index]
        for name, entry in entries.items():
            if entry.shape == parameter.shape and entry.stride() != parameter.stride():
                entries[name] = torch.empty_like(parameter, dtype=entry.dtype).copy_(entry)


def can_pack(model: nn.Module) -> bool:
    """Whether packing is available: fp32 weights, computed with in fp32, by oneDNN."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or torch.is_autocast_enabled("cpu"):
        return False
    return all(map(_on_cpu, model.parameters()))


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Run a block with packed copies of linear weights not stored by columns, without gradient.

    The weights must not change inside of the block.

    Args:
        model: :func:`can_pack` must hold.
    """
    layers = [layer for layer in _linears(model) if not _by_columns(layer.weight)]
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), EXPECTED_ROWS)
            layer.forward = partial(_linear, packed, layer.bias)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if type(module) is nn.Linear]


def _on_cpu(weight: Tensor) -> bool:
    local = not isinstance(weight, DTensor)
    return local and weight.device.type == "cpu" and weight.dtype == torch.float32


def _by_columns(weight: Tensor) -> bool:
    return weight.t().is_contiguous()


def _linear(packed: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
    """(..., D) to (..., V)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return product


class AdamW(torch.optim.AdamW):
    """PyTorch's fused AdamW, at full speed for weights stored by columns as well.

    The fused update copies whatever does not lie row by row in memory, there and back, which
    takes longer than the update. A matrix stored by columns is its transpose stored by rows, and
    the update is one of single entries: so it is shown the transposes.

    Args:
        parameters: To be optimized.
        options: Of ``torch.optim.AdamW``.
    """

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, fused=True, **options)
        # Gradients are unscaled before they are clipped, so not in the step.
        self._step_supports_amp_scaling = False

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, after the closure's backward pass if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        by_columns = [
            parameter
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
            and parameter.dim() == 2
            and parameter.stride(0) < parameter.stride(1)
        ]
        self._transpose(by_columns)
        try:
            super().step()
        finally:
            self._transpose(by_columns)
        return loss

    def _transpose(self, parameters: list[nn.Parameter]) -> None:
        """Parameters, gradients and state; no data moves."""
        for parameter in parameters:
            gradient, parameter.grad = parameter.grad, None
            parameter.data = parameter.data.t()
            parameter.grad = None if gradient is None else gradient.t()
            state = self.state[parameter]
            for name, entry in state.items():
                if entry.dim() == 2:
                    state[name] = entry.t()
