"""AdamW for weights stored by columns (:mod:`sdft.packing`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


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
