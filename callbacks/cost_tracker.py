"""What a run costs, by phase: seconds, tokens, operations and memory."""

from __future__ import annotations

import resource
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import torch

from sdft.evaluation.cost import ModelShape, operations_ratio, step_operations
from sdft.runs.files import write_json_atomically


class CostTracker(L.Callback):
    """Logs each step's seconds by phase and its operations; writes the run's to ``cost.json``.

    Operations count real tokens, student, teacher and rollout apart, and are compared with those
    of SFT on the same examples. Checkpoints hold the sums, so a resumed run goes on counting; what
    a killed run did after its last checkpoint is not in them. Seconds and operations are those of
    this process; the peak of memory is that of the process which wrote the file.
    """

    def __init__(self) -> None:
        self._shape: ModelShape | None = None
        self._num_steps = 0
        self._tokens = 0
        self._seconds: Counter[str] = Counter()
        self._operations: Counter[str] = Counter()

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {
            "num_steps": self._num_steps,
            "tokens": self._tokens,
            "seconds": dict(self._seconds),
            "operations": dict(self._operations),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's sums."""
        self._num_steps, self._tokens = state_dict["num_steps"], state_dict["tokens"]
        self._seconds = Counter(state_dict["seconds"])
        self._operations = Counter(state_dict["operations"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Add the step to the sums and log it."""
        if self._shape is None:
            self._shape = ModelShape.of(pl_module.student)
        rollout, seconds = pl_module.last_rollout, pl_module.clock.seconds
        operations = step_operations(self._shape, batch, rollout)
        self._num_steps += 1
        self._tokens += rollout.num_tokens if rollout else 0
        self._seconds.update(seconds)
        self._operations.update(operations)
        logged = {f"cost/{phase}_s": value for phase, value in seconds.items()}
        logged["cost/operations_vs_sft"] = operations_ratio(operations)
        logged["cost/peak_memory_gb"] = peak_memory(pl_module.device) / 1e9
        pl_module.log_dict(logged, batch_size=len(batch))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the sums so far; called after every stage."""
        if trainer.is_global_zero and self._num_steps:
            write_json_atomically(
                Path(trainer.default_root_dir) / "cost.json", self.record(pl_module.device)
            )

    def record(self, device: torch.device) -> dict[str, Any]:
        """The content of ``cost.json``."""
        sampling = self._seconds.get("sample")
        return {
            "num_steps": self._num_steps,
            "seconds": dict(self._seconds),
            "completion_tokens": self._tokens,
            "completion_tokens_per_s": self._tokens / sampling if sampling else None,
            "operations": dict(self._operations),
            "operations_vs_sft": operations_ratio(self._operations),
            "peak_memory_bytes": peak_memory(device),
        }


def peak_memory(device: torch.device) -> int:
    """Bytes: what CUDA has allocated at most, or the process has held resident at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
