"""Measures bytes per parameter of each process, against the formula of docs/scaling.md.

    python benchmarks/strategy_memory.py [--ranks N] [--strategies NAME …]

A random model of some 36 million parameters takes two optimizer steps of the distillation loss, on
one process, replicated (DDP) and sharded (FSDP2). The resident set is read before the model is
built, after the second step, when gradient and optimizer state are held, and inside a rollout's
`gathered_weights`. CPU only: the memory is that of the tensors, which are the same on a GPU.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.hidden_states import LossPositions, completion_hidden_states
from sdft.model.head import VocabularyHead
from sdft.model.sharding import gathered_weights, shard
from sdft.model.teacher import make_teacher
from sdft.model.teacher_options import TeacherKind

PROMPTS, COMPLETIONS = [[5, 6, 7], [8, 9, 10]], [[11, 12, 13], [14, 15, 16]]
FLOAT = 4
COPIES = {"ema": 1, "student": 0}  # copies of the weights, besides the student's
STRATEGIES = ("one process", "ddp", "fsdp2")


class Step(nn.Module):
    """Student, teacher and the loss of a step."""

    def __init__(self, teacher: TeacherKind) -> None:
        super().__init__()
        sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
        self.student = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=8192))
        self.num_parameters = sum(each.numel() for each in self.student.parameters())
        self.teacher = make_teacher(self.student, {"kind": teacher})

    def forward(self) -> Tensor:
        """The loss of two rows."""
        positions = LossPositions.of(COMPLETIONS)
        with torch.no_grad(), self.teacher.scoring(self.student) as model:
            read = completion_hidden_states(model, PROMPTS, COMPLETIONS, positions)
            teacher_head = VocabularyHead.of(model, check=False)
        return distillation_loss(
            completion_hidden_states(self.student, PROMPTS, COMPLETIONS, positions),
            VocabularyHead.of(self.student, check=False),
            read,
            teacher_head,
            tokens=positions.tokens,
            weights=torch.full((len(positions),), 1 / len(positions)),
            divergence=make_divergence("forward_kl"),
        ).loss


def resident() -> int:
    """Resident bytes of this process."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure(rank: int, num_ranks: int, strategy: str, teacher: str, folder: str) -> None:
    """Write bytes per parameter of one rank, after a step and in a rollout, to a file."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num_ranks
    )
    distributed.all_reduce(torch.zeros(1))
    before = resident()
    step = Step(teacher)
    if strategy == "fsdp2":
        mesh = init_device_mesh("cpu", (num_ranks,))
        for model in (step.student, *step.teacher.children()):
            shard(model, mesh)
    forward: nn.Module = step
    if strategy == "ddp":
        forward = nn.parallel.DistributedDataParallel(step, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(step.student.parameters(), fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()
        step.teacher.update(step.student, 1)
    held = resident() - before
    with gathered_weights(step.student) if strategy == "fsdp2" else nullcontext():
        in_rollout = resident() - before
    if rank == 0:
        found = [each / step.num_parameters for each in (held, in_rollout)]
        torch.save(found, f"{folder}/found.pt")
    distributed.destroy_process_group()


def formula(strategy: str, teacher: str, num_ranks: int) -> tuple[float, float]:
    """Bytes per parameter between steps, and in a rollout: docs/scaling.md."""
    held = FLOAT * (4 + COPIES[teacher])
    if strategy != "fsdp2":
        return held, held
    return held / num_ranks, held / num_ranks + FLOAT


def main() -> None:
    """Measure every case and print it beside the formula."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="Processes of ddp and fsdp2.")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    options = parser.parse_args()
    ranks = options.ranks
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # freed memory leaves the resident set
    print("strategy      teacher   ranks   held (formula)   in a rollout (formula)")
    for strategy in options.strategies:
        for teacher in COPIES:
            number = 1 if strategy == "one process" else ranks
            with tempfile.TemporaryDirectory() as folder:
                multiprocessing.spawn(measure, (number, strategy, teacher, folder), nprocs=number)
                held, in_rollout = torch.load(f"{folder}/found.pt")
            expected = formula(strategy, teacher, number)
            print(
                f"{strategy:<13} {teacher:<9} {number:<7} {held:5.1f} ({expected[0]:4.1f})     "
                f"{in_rollout:5.1f} ({expected[1]:4.1f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
