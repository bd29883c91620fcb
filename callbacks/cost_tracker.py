"""What a run costs, by phase: seconds, tokens, FLOPs and memory."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from sdft.evaluation.cost import plus
from sdft.runs.files import write_json_atomically
from sdft.types import DemonstrationBatch

SFT = "sft"  # what SFT on the same rows would cost; all others are spent


class CostTracker(L.Callback):
    """Logs each step's seconds by phase and its FLOPs; writes their sums to ``cost.json``.

    FLOPs are those of the passes that the method reports, and are compared with those of SFT on the
    stage's own rows; those of an unknown architecture are null. Checkpoints hold the
    sums, so a resumed run continues them; what a killed run did after its last checkpoint is not
    included. Seconds and FLOPs are those of this process; the memory peak is that of the process
    that wrote the file.
    """

    def __init__(self) -> None:
        self._num_steps = 0
        self._tokens = 0
        self._seconds: Counter[str] = Counter()
        self._flops: dict[str, float | None] = {}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {
            "num_steps": self._num_steps,
            "tokens": self._tokens,
            "seconds": dict(self._seconds),
            "flops": dict(self._flops),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint's sums."""
        self._num_steps, self._tokens = state_dict["num_steps"], state_dict["tokens"]
        self._seconds = Counter(state_dict["seconds"])
        self._flops = dict(state_dict["flops"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        """Add the cost of the stage's start, before its first step."""
        if pl_module.at_stage_start():
            self._add(pl_module, pl_module.passes.flops)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Add the step to the sums and log it."""
        flops = {**pl_module.passes.flops, SFT: sft_flops(pl_module, batch)}
        self._num_steps += 1
        self._add(pl_module, flops)
        logged = {f"cost/{phase}_s": value for phase, value in pl_module.clock.seconds.items()}
        logged["cost/peak_memory_gb"] = peak_memory(pl_module.device) / 1e9
        if (ratio := flops_vs_sft(flops)) is not None:
            logged["cost/flops_vs_sft"] = ratio
        pl_module.log_dict(logged, batch_size=len(batch))

    def _add(self, module: L.LightningModule, flops: Mapping[str, float | None]) -> None:
        self._tokens += module.passes.num_sampled
        self._seconds.update(module.clock.seconds)
        for purpose, number in flops.items():
            self._flops[purpose] = plus(self._flops.get(purpose, 0.0), number)

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
            "flops": dict(self._flops),
            "flops_vs_sft": flops_vs_sft(self._flops),
            "peak_memory_bytes": peak_memory(device),
        }


def sft_flops(module: Any, batch: DemonstrationBatch) -> float | None:
    """FLOPs of imitating the batch's rows of the stage's own task; None for an unknown model.

    Replayed rows and rows without a demonstration do not count: SFT would not read them.
    """
    shape = module.passes.shape_of(module.student)
    if shape is None:
        return None
    task, documents = module.plan.tasks[module.stage], module.train_on == "documents"
    rows = zip(batch.rows, batch.student_prompts, batch.demonstrations, strict=True)
    imitated = [
        (len(prompt), len(target))
        for row, prompt, target in rows
        if row.task == task and (documents or row.demonstration)
    ]
    lengths = [prompt + target - 1 for prompt, target in imitated]
    return shape.flops(lengths, sum(target for _, target in imitated), gradient=True)


def flops_vs_sft(flops: Mapping[str, float | None]) -> float | None:
    """FLOPs of all passes, relative to SFT's; None where either is unknown or SFT has none."""
    spent: float | None = 0.0
    for purpose, number in flops.items():
        spent = spent if purpose == SFT else plus(spent, number)
    sft = flops.get(SFT)
    return spent / sft if spent is not None and sft else None


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated by CUDA, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
