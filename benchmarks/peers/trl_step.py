"""TRL's side of `benchmarks/step.py`: runs its SDFTTrainer step by step in TRL's environment.

    PYTHON_OF_TRL benchmarks/peers/trl_step.py JOB.json

The trainer is not changed; its batches are counted as they pass. Options whose defaults differ are
set to this project's: one completion per prompt, the KL over the whole vocabulary, an EMA teacher,
float32, no recomputation of activations, prompts in full, rows in the given order. A job may ask
for the defaults instead. For completions of a forced length, the logit of the end token is masked.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from stepping.pace import Pace
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

ALIKE = {
    "num_generations": 1,
    "distillation_mode": "full_logits",
    "distillation_alpha": 0.0,  # KL(teacher || student)
    "distillation_is_clip": None,
    "teacher_model_kind": "ema",
    "teacher_update_rate": 0.01,
    "max_prompt_length": None,
    "bf16": False,
    "gradient_checkpointing": False,
}


class CountedTrainer(SDFTTrainer):
    """Counts the tokens of every batch, and the seconds that rollouts take."""

    def _prepare_training_batch(self, inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super()._prepare_training_batch(inputs)
        completions = int(batch["completion_mask"].sum())
        self.counts = {
            "prompt_tokens": int(batch["prompt_mask"].sum()),
            "teacher_tokens": int(batch["teacher_attention_mask"].sum()) - completions,
            "completion_tokens": completions,
        }
        return batch

    def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
        start = time.perf_counter()
        found = super()._generate(prompt_ids)
        self.phases = {"sample": time.perf_counter() - start}
        return found


class Paced(TrainerCallback):
    """Reports every step and waits for the next request."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.trainer: CountedTrainer | None = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Report that everything is loaded."""
        self.pace.turn()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Report the tokens that the step has read and written."""
        self.pace.turn(**self.trainer.counts, phases=self.trainer.phases)


def main() -> None:
    """Train for as many steps as the job says."""
    pace = Pace()
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    tokenizer = AutoTokenizer.from_pretrained(
        job["model"], padding_side="left", truncation_side="left"
    )
    paced = Paced(pace)
    paced.trainer = CountedTrainer(
        model=job["model"],
        args=settings(job, tokenizer.eos_token_id),
        train_dataset=Dataset.from_list(job["peer_rows"]),
        processing_class=tokenizer,
        callbacks=[paced],
    )
    paced.trainer.train()


def settings(job: dict[str, Any], end_id: int) -> SDFTConfig:
    """TRL's configuration of a job."""
    return SDFTConfig(
        output_dir=job["folder"],
        max_steps=job["num_steps"],
        per_device_train_batch_size=job["batch_size"],
        max_completion_length=job["max_new_tokens"],
        generation_kwargs={"suppress_tokens": [end_id]} if job["forced"] else None,
        teacher_prompt_template=job["peer_template"],
        model_init_kwargs={"dtype": "float32"},
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **({} if job["peer_defaults"] else ALIKE),
    )


if __name__ == "__main__":
    main()
