"""The optimizer of each stage, its steps, and what a checkpoint holds."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_modules.anchor import StageAnchor
from lightning_modules.greedy_evaluation import GreedyEvaluation
from sdft.evaluation.cost import LapClock, Passes
from sdft.model.lean_adamw import LeanAdamW
from sdft.model.lora import LoRA, backbone_state, digest, trained_parameters
from sdft.model.sharding import gradient_norm, gradients_are_finite
from sdft.seeds import Stream, mix_seed
from sdft.stages import StagePlan, WarmupCosine
from sdft.types import Rollout


class StageTraining(GreedyEvaluation):
    """Optimizer and schedule restart with every stage; a resumed run continues within one."""

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    memory: str
    lora: LoRA | None
    anchor: StageAnchor | None
    seed: int

    def __init__(self) -> None:
        super().__init__()
        self.last_rollout: Rollout | None = None  # of the last training step, for callbacks
        self.clock = LapClock()  # seconds of its phases, for callbacks
        self.passes = Passes()  # what its models read, for callbacks
        self.step_skipped = False  # whether it moved nothing, for callbacks
        self._num_padding_rows = 0  # of the batch in training

    @property
    def plan(self) -> StagePlan:
        """The sequence of tasks, as the data module lays it out."""
        return self.trainer.datamodule.plan

    @property
    def stage(self) -> int:
        """The stage in training, from 0."""
        return self.trainer.datamodule.stage

    def at_stage_start(self) -> bool:
        """Whether no optimizer step of the current stage has been taken yet."""
        return self.trainer.global_step == self.plan.first_step(self.stage)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """A fresh AdamW and cosine schedule for the current stage."""
        optimizer = self._adamw(lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = WarmupCosine(self.warmup_steps, self.plan.steps_in_stage(self.stage))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def _adamw(self, **options: float) -> torch.optim.Optimizer:
        parameters = trained_parameters(self.student)
        if self.memory == "full":
            optimizer = torch.optim.AdamW(parameters, fused=True, **options)
            # Gradients are clipped between backward and step, so they are unscaled before the step.
            optimizer._step_supports_amp_scaling = False
            return optimizer
        seed = mix_seed(Stream.WEIGHT_ROUNDING, self.seed, self.plan.first_step(self.stage))
        return LeanAdamW(parameters, seed=seed, **options)

    def on_before_backward(self, loss: Tensor) -> None:
        """Note whether the loss is a number."""
        self._loss_is_finite = bool(loss.detach().isfinite())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip a step whose loss or gradient is NaN or infinite on any rank: nothing moves."""
        norm = gradient_norm(self.student)
        in_range = bool(norm.isfinite()) or gradients_are_finite(self.student)
        finite = self._loss_is_finite and in_range
        self.step_skipped = not self.trainer.strategy.reduce_boolean_decision(finite)
        if self.step_skipped:
            optimizer.zero_grad()
            return
        if self.device_mesh is not None:  # each rank has a part of every gradient
            norm = self.trainer.strategy.reduce(norm.square(), reduce_op="sum").sqrt()
        self.log("train/gradient_norm", norm)  # before clipping

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Step the student and free its gradients, which the next rollout does not need."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()
        self.clock.lap("optimizer")

    def fixed_settings(self) -> dict[str, str]:
        """Values that a resumed run must share with its checkpoint, by the option's name."""
        if self.lora is None:
            return {"lora": "null"}
        return {"lora": str(self.lora), "pretrained": f"of weights {self._backbone_digest}"}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave a frozen backbone out; keep a digest by which a resumed run recognises it."""
        checkpoint["fixed_settings"] = self.fixed_settings()
        if self.anchor is not None:
            checkpoint["anchor"] = self.anchor.state()
        for name in self._backbone():
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another run's checkpoint, and put the frozen backbone back.

        Raises:
            ValueError: Teacher, adapters or the backbone's weights are not the checkpoint's.
        """
        held = checkpoint.get("fixed_settings", {})
        for name, asked in self.fixed_settings().items():
            if held.get(name) != asked:
                raise ValueError(
                    f"the checkpoint was made with model.{name} {held.get(name)}, this "
                    f"configuration has {asked}: set model.{name} to what the checkpoint has, or "
                    "start a new run without --ckpt_path"
                )
        for name, tensor in self._backbone().items():
            checkpoint["state_dict"][name] = tensor
        if self.anchor is not None:
            self.anchor.load_state(checkpoint.get("anchor", {}))

    def _backbone(self) -> dict[str, Tensor]:
        """Weights that a checkpoint leaves out, by their names in it."""
        if self.lora is None:
            return {}
        return {f"student.{name}": each for name, each in backbone_state(self.student).items()}

    @cached_property
    def _backbone_digest(self) -> str:
        return digest(self._backbone())
