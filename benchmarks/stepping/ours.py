"""This project's side of `benchmarks/step.py`: runs a method under Lightning, step by step.

    python benchmarks/stepping/ours.py JOB.json

Callbacks, logger and gradient clipping are those of `configs/defaults.yaml`, without the progress
bar. Where completions have a forced length, no token ends them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from stepping.pace import Pace

import lightning_modules
from callbacks import CostTracker
from datamodules import ContinualDataModule
from sdft.tasks.task_spec import TaskSpec
from sdft.types import DemonstrationBatch


class Paced(L.Callback):
    """Reports every step and waits for the next request.

    Args:
        pace: Receives the reports.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report that everything is loaded."""
        self._pace.turn()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: lightning_modules.ContinualModule,
        outputs: Any,
        batch: DemonstrationBatch,
        batch_idx: int,
    ) -> None:
        """Report the step's tokens read and written, and its seconds by phase."""
        rollout = pl_module.last_rollout
        completions = batch.demonstrations if rollout is None else rollout.completions
        self._pace.turn(
            prompt_tokens=sum(map(len, batch.student_prompts)),
            teacher_tokens=sum(map(len, batch.teacher_prompts)),
            completion_tokens=sum(map(len, completions)),
            phases=dict(pl_module.clock.seconds),
        )


def main() -> None:
    """Train for as many steps as the job says."""
    pace = Pace()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    module = getattr(lightning_modules, job["method"])(
        pretrained=job["model"],
        max_new_tokens=job["max_new_tokens"],
        **job["module_options"],
    )
    if job["forced"]:
        module.end_ids = frozenset()
    data = ContinualDataModule(
        [TaskSpec(name="rows", path=job["rows"], scorer="exact_match")],
        module.tokenizer,
        batch_size=job["batch_size"],
        examples_per_stage=job["num_steps"] * job["batch_size"],
        max_prompt_tokens=job["max_prompt_tokens"],
        **job["data_options"],
    )
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[CostTracker(), Paced(pace)],
        logger=TensorBoardLogger(job["folder"], default_hp_metric=False),
        default_root_dir=job["folder"],
        log_every_n_steps=1,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data.num_stages_done = 0  # this stage alone, without evaluations
    trainer.fit(module, datamodule=data)


if __name__ == "__main__":
    main()
