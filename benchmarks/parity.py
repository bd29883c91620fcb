"""Compares our loss and gradient with TRL's on the same model, batch and completions.

    python3.11 -m venv .venv-trl && .venv-trl/bin/pip install torch==2.13.0 trl==1.16.0 peft
    python benchmarks/parity.py --trl_python .venv-trl/bin/python [--quick]

TRL runs in its own environment (`benchmarks/peers/trl_loss.py`): there
`SDFTTrainer.compute_loss` does everything from token ids to the loss, with full logits: padding,
both forward passes, the mask of the first tokens, the divergence, and its only reduction, the mean
over the tokens of a sequence and then over sequences. Ours is what `SDFTModule.training_step` calls
after the rollout. Completions have several lengths, one of them shorter than the mask.

The last line is JSON: the largest relative differences over forward and reverse KL, of the loss
and, in the Euclidean norm over all parameters, of the gradient. Both sides compute in float64, so
that only mathematical differences remain; ``--dtype float32`` adds the rounding of two backward
passes over differently padded batches. ``--quick`` uses the tiny random model instead of
SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.loss.reductions import reduction_weights
from sdft.model.head import VocabularyHead
from sdft.model.pretrained import LoadedModel, load_model, save_model

TRL_SCRIPT = Path(__file__).parent / "peers" / "trl_loss.py"
INSTALL = "python3.11 -m venv .venv-trl && .venv-trl/bin/pip install torch==2.13.0 trl==1.16.0 peft"
DIVERGENCES = ("forward_kl", "reverse_kl")
COMPLETION_LENGTHS = (12, 2, 7, 5)
NUM_MASKED = 3
TEACHER_NOISE = 0.5  # of each parameter's spread, so that divergences exceed rounding errors
SPREAD = 8.0  # of the tiny model's logits
Batch = dict[str, list[list[int]]]


def main() -> None:
    """Compare both divergences; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tiny random model")
    parser.add_argument("--trl_python", default=".venv-trl/bin/python", help="TRL's interpreter")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    arguments = parser.parse_args()
    if not Path(arguments.trl_python).is_file():
        raise SystemExit(
            f"--trl_python {arguments.trl_python} does not exist; make it with\n  {INSTALL}"
        )
    loaded = load_model("tiny-random" if arguments.quick else arguments.model)
    loaded.model.eval()
    if arguments.quick:  # random weights are near zero, and so are divergences between such models
        loaded.model.get_output_embeddings().weight.data.mul_(SPREAD)
    loaded.model.to(getattr(torch, arguments.dtype))
    teacher = noisy_copy(loaded)
    batch = random_batch(loaded.model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        theirs = trl_losses(arguments.trl_python, Path(folder), loaded, teacher, batch)
    differences = {
        name: compare(theirs[name], *ours(name, loaded, teacher, batch)) for name in theirs
    }
    for name, (loss_rel, grad_rel) in differences.items():
        loss = theirs[name]["loss"]
        print(f"{name}: loss {loss:.6g}, differs by {loss_rel:.1e}, gradient by {grad_rel:.1e}")
    loss_rel, grad_rel = (max(each) for each in zip(*differences.values(), strict=True))
    print(json.dumps({"loss_rel": loss_rel, "grad_rel": grad_rel}))


def noisy_copy(loaded: LoadedModel) -> LoadedModel:
    """A teacher whose weights are near the student's."""
    teacher = copy.deepcopy(loaded)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in teacher.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += TEACHER_NOISE * parameter.std() * noise
    return teacher


def random_batch(vocab_size: int) -> Batch:
    """Prompts of both models, of several lengths, and the completions both score."""
    generator = torch.Generator().manual_seed(1)

    def ids(lengths: tuple[int, ...]) -> list[list[int]]:
        return [
            torch.randint(vocab_size, (each,), generator=generator).tolist() for each in lengths
        ]

    return {
        "student_prompts": ids((9, 4, 13, 6)),
        "teacher_prompts": ids((21, 17, 40, 28)),
        "completions": ids(COMPLETION_LENGTHS),
    }


def ours(
    name: str, loaded: LoadedModel, teacher: LoadedModel, batch: Batch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients by parameter."""
    student, completions = loaded.model, batch["completions"]
    positions = LossPositions.of(completions, NUM_MASKED)
    with torch.no_grad():
        teacher_hidden = completion_hidden_states(
            teacher.model, batch["teacher_prompts"], completions, positions
        )
    loss = distillation_loss(
        completion_hidden_states(student, batch["student_prompts"], completions, positions),
        VocabularyHead.of(student),
        teacher_hidden,
        VocabularyHead.of(teacher.model),
        tokens=positions.tokens,
        weights=reduction_weights("sequence_mean", positions.rows, positions.num_sequences),
        divergence=make_divergence(name),
    ).loss
    names, parameters = zip(*student.named_parameters(), strict=True)
    return loss.detach(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def trl_losses(
    python: str, folder: Path, loaded: LoadedModel, teacher: LoadedModel, batch: Batch
) -> dict[str, dict[str, Tensor]]:
    """TRL's loss and gradients by divergence, computed by its own interpreter."""
    for role, model in (("student", loaded.model), ("teacher", teacher.model)):
        save_model(model, loaded.tokenizer, folder / role)
    job = {**batch, "num_masked": NUM_MASKED}
    (folder / "batch.json").write_text(json.dumps(job), encoding="utf-8")
    for name in DIVERGENCES:
        command = [python, str(TRL_SCRIPT), str(folder), "--divergence", name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(
                f"{' '.join(command)} failed:\n{done.stderr}\nTRL's environment:\n  {INSTALL}"
            )
    return {name: load_file(folder / f"{name}.safetensors") for name in DIVERGENCES}


def compare(
    theirs: dict[str, Tensor], loss: Tensor, gradients: dict[str, Tensor]
) -> tuple[float, float]:
    """Relative differences of the loss and of the gradient."""
    if {*gradients, "loss"} != {*theirs}:
        raise RuntimeError(f"parameters differ: {sorted({*gradients, 'loss'} ^ {*theirs})}")
    off = sum((each - theirs[name]).double().square().sum() for name, each in gradients.items())
    norm = sum(theirs[name].double().square().sum() for name in gradients)
    return float((loss - theirs["loss"]).abs() / theirs["loss"]), float((off / norm).sqrt())


if __name__ == "__main__":
    main()
