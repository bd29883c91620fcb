"""Computes TRL's loss and gradients on a saved batch, in TRL's environment, for parity.py.

It builds TRL's `SDFTTrainer` on the student's directory, gives it the teacher's weights, and calls
`SDFTTrainer.compute_loss` in evaluation mode on the batch in the layout of its own collator:
prompts padded on the left, completions on the right.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

ALPHAS = {"forward_kl": 0.0, "reverse_kl": 1.0}


def main() -> None:
    """Write `<divergence>.safetensors`: the loss, and each parameter's gradient by its name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds student/, teacher/ and batch.json")
    parser.add_argument("--divergence", choices=[*ALPHAS], required=True)
    arguments = parser.parse_args()
    folder = arguments.folder
    batch = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    trainer = make_trainer(folder, ALPHAS[arguments.divergence], batch["num_masked"])
    trainer.model.eval()
    loss = trainer.compute_loss(trainer.model, inputs(batch))
    loss.backward()
    found = {name: each.grad.contiguous() for name, each in trainer.model.named_parameters()}
    save_file(found | {"loss": loss.detach()}, folder / f"{arguments.divergence}.safetensors")
    print(json.dumps({"loss": loss.item()}))


def make_trainer(folder: Path, alpha: float, num_masked: int) -> SDFTTrainer:
    """A trainer in the saved type with the divergence over all logits and the saved teacher."""
    settings = SDFTConfig(
        output_dir=str(folder / "trl"),
        distillation_mode="full_logits",
        distillation_alpha=alpha,
        distillation_is_clip=None,
        num_masked_tokens=num_masked,
        num_generations=1,
        temperature=1.0,
        teacher_model_kind="base",
        model_init_kwargs={"dtype": "auto"},
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
    )
    row = {"prompt": [{"role": "user", "content": "x"}], "privileged_context": "x"}
    trainer = SDFTTrainer(
        model=str(folder / "student"),
        args=settings,
        train_dataset=Dataset.from_list([row] * 8),
        processing_class=AutoTokenizer.from_pretrained(folder / "student", padding_side="left"),
    )
    saved = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype="auto")
    trainer.teacher_model.load_state_dict(saved.state_dict())
    return trainer


def inputs(batch: dict) -> dict[str, torch.Tensor]:
    """The tensors that `compute_loss` reads."""
    prompts, prompt_mask = padded(batch["student_prompts"], left=True)
    teacher, teacher_mask = padded(batch["teacher_prompts"], left=True)
    completions, mask = padded(batch["completions"], left=False)
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": completions,
        "completion_mask": mask,
        "teacher_input_ids": torch.cat([teacher, completions], 1),
        "teacher_attention_mask": torch.cat([teacher_mask, mask], 1),
    }


def padded(rows: list[list[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and their mask, both (B, longest)."""
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    join = (lambda pad, row: pad + row) if left else (lambda pad, row: row + pad)
    return (
        torch.tensor([join(pad, row) for pad, row in zip(pads, rows, strict=True)]),
        torch.tensor([join(pad, one) for pad, one in zip(pads, ones, strict=True)]),
    )


if __name__ == "__main__":
    main()
