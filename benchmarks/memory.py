"""Peak memory and time of the distillation loss alone, against losses that hold all logits.

    python benchmarks/memory.py [--quick] [--divergence NAME] [--threads N] [--trl_python PATH]

Four ways from the same hidden states to the same gradients:

- ours: `sdft.loss.distillation.distillation_loss`, the divergence's gradient in closed form;
- autograd: the same with a divergence that has its values only, so that autograd runs per tile;
- naive: project all rows, log_softmax both, `kl_div`, sum, backward;
- trl: TRL's own full-vocabulary loss on projected logits, in TRL's interpreter where one is given.

Memory is counted in units of one float32 (N, V) tensor and beyond the inputs (hidden states,
heads) and the gradients: the peak of the live bytes that PyTorch's allocator hands out during
forward and backward, less the bytes of the gradients. On the CPU the profiler reports each
allocation, so the peak is exact; the resident set, the other candidate, misses reused pages and
counts allocator slack. Buffers inside the matrix-product library are not PyTorch's: the resident
peak of a fresh process is printed beside, as a check that nothing large hides there. The naive
ways allocate their gradients after their peak, so that subtracting those flatters them.

Time is forward plus backward, each of the first two ways taking turns with naive; `time_ratio` is
the median over the pairs by the clock on the wall. CPU-seconds stand beside it: unlike the clock they do not count
what else runs on the machine. Every case runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.divergences import Divergence
from sdft.model.head import VocabularyHead

VOCABULARIES = (32_768, 49_152, 152_064, 262_144)
QUICK_VOCABULARIES = (49_152,)
QUICK_PAIRS = 2
NUM_ROWS = 1024
WIDTH = 576
TILED = ("ours", "autograd")
ALPHAS = {"forward_kl": 0.0, "reverse_kl": 1.0}
Loss = Callable[[], Tensor]


class ByAutograd(Divergence):
    """A KL as anybody would write it: autograd differentiates it tile by tile."""

    def __init__(self, name: str) -> None:
        self.reverse = name == "reverse_kl"

    def values(self, student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
        """KL(teacher || student), or the reverse one."""
        student_log, teacher_log = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
        return full_kl(student_log, teacher_log, self.reverse)


def full_kl(student_log: Tensor, teacher_log: Tensor, reverse: bool) -> Tensor:
    """The library's KL at each row of two (n, V) tables of log-probabilities."""
    below, above = (teacher_log, student_log) if reverse else (student_log, teacher_log)
    return functional.kl_div(below, above, reduction="none", log_target=True).sum(-1)


class Setting:
    """Inputs of one case: hidden states and heads of a student and a teacher close to it."""

    def __init__(self, vocab_size: int, divergence: str, device: str) -> None:
        torch.manual_seed(0)
        self.student_layer = nn.Linear(WIDTH, vocab_size, bias=False, device=device)
        self.teacher_layer = nn.Linear(WIDTH, vocab_size, bias=False, device=device)
        with torch.no_grad():
            self.student_layer.weight.normal_(std=0.05)
            self.teacher_layer.weight.copy_(self.student_layer.weight).mul_(1.1)
        self.teacher_layer.requires_grad_(False)
        self.hidden = torch.randn(NUM_ROWS, WIDTH, device=device, requires_grad=True)
        self.teacher_hidden = torch.randn(NUM_ROWS, WIDTH, device=device)
        self.tokens = torch.randint(vocab_size, (NUM_ROWS,), device=device)
        self.weights = torch.full((NUM_ROWS,), 1.0 / NUM_ROWS, device=device)
        self.divergence = divergence

    def parameters(self) -> tuple[Tensor, Tensor]:
        """What receives a gradient."""
        return self.hidden, self.student_layer.weight

    def ours(self) -> Tensor:
        """The tiled loss with the divergence's closed form."""
        return self._tiled(make_divergence(self.divergence))

    def autograd(self) -> Tensor:
        """The tiled loss with autograd in every tile."""
        return self._tiled(ByAutograd(self.divergence))

    def _tiled(self, divergence: Divergence) -> Tensor:
        return distillation_loss(
            self.hidden,
            VocabularyHead(self.student_layer),
            self.teacher_hidden,
            VocabularyHead(self.teacher_layer),
            tokens=self.tokens,
            weights=self.weights,
            divergence=divergence,
        ).loss

    def naive(self) -> Tensor:
        """Both models' logits in full, and the library's KL."""
        student_log = self.student_layer(self.hidden).log_softmax(-1)
        with torch.no_grad():
            teacher_log = self.teacher_layer(self.teacher_hidden).log_softmax(-1)
        values = full_kl(student_log, teacher_log, self.divergence == "reverse_kl")
        return (values * self.weights).sum()

    def trl(self) -> Tensor:
        """Both models' logits in full, and TRL's loss on them."""
        from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss

        student = self.student_layer(self.hidden)
        with torch.no_grad():
            teacher = self.teacher_layer(self.teacher_hidden)
        values = compute_full_logit_self_distillation_loss(
            student, teacher, distillation_alpha=ALPHAS[self.divergence]
        )
        return (values * self.weights).sum()


def step(setting: Setting, loss: Loss) -> tuple[float, float, float]:
    """Seconds of one forward and backward by the clock and of the CPU, and the loss."""
    for each in setting.parameters():
        each.grad = None
    synchronize(setting)
    start, cpu_start = time.perf_counter(), time.process_time()
    value = loss()
    value.backward()
    synchronize(setting)
    return time.perf_counter() - start, time.process_time() - cpu_start, value.item()


def synchronize(setting: Setting) -> None:
    """Wait for the device, so that the clock sees its work."""
    if setting.hidden.is_cuda:
        torch.cuda.synchronize()


def peak_units(setting: Setting, loss: Loss) -> float:
    """Peak live bytes beyond inputs and gradients, in units of one float32 (N, V)."""
    for each in setting.parameters():
        each.grad = None
    if setting.hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss().backward()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            loss().backward()
        peak = peak_of_allocations(profiler)
    return units(peak - gradient_bytes(setting), setting)


def peak_of_allocations(profiler: profile) -> int:
    """Highest running sum of the allocations and frees that were recorded."""
    events = [
        each for each in profiler.profiler.kineto_results.events() if each.name() == "[memory]"
    ]
    live = peak = 0
    for each in sorted(events, key=lambda each: each.start_ns()):
        live += each.nbytes()
        peak = max(peak, live)
    return peak


def resident_units(setting: Setting, loss: Loss) -> float:
    """Peak resident set of this fresh process beyond inputs and gradients, in the same units."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # restart the peak from here
    before = resident_bytes("VmRSS")
    loss().backward()
    return units(resident_bytes("VmHWM") - before - gradient_bytes(setting), setting)


def resident_bytes(field: str) -> int:
    """A field of this process's status, such as VmRSS."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def gradient_bytes(setting: Setting) -> int:
    """Bytes of the gradients that a step leaves behind."""
    return sum(each.numel() * each.element_size() for each in setting.parameters())


def units(num_bytes: float, setting: Setting) -> float:
    """Bytes as a share of one float32 (N, V)."""
    return num_bytes / (4 * NUM_ROWS * setting.student_layer.out_features)


def measure_memory(setting: Setting, way: str) -> dict[str, float]:
    """Both peaks of one way; the resident one first, while the process is fresh."""
    loss = getattr(setting, way)
    found = {}
    if not setting.hidden.is_cuda:
        Setting(64, setting.divergence, "cpu").ours().backward()  # start threads and libraries
        found["resident"] = resident_units(setting, loss)
    return {"allocated": peak_units(setting, loss), **found}


def measure_time(setting: Setting, way: str, num_pairs: int) -> dict[str, float]:
    """Medians over pairs of one way / naive, after one unmeasured pair."""
    pairs = []
    for _ in range(num_pairs + 1):
        *ours, our_loss = step(setting, getattr(setting, way))
        *naive, naive_loss = step(setting, setting.naive)
        if abs(our_loss - naive_loss) > 1e-4 * abs(naive_loss):
            raise RuntimeError(f"the losses differ: ours {our_loss}, naive {naive_loss}")
        pairs.append((*ours, *naive))
    return {
        "ratio": statistics.median(ours / naive for ours, _, naive, _ in pairs[1:]),
        "cpu_ratio": statistics.median(ours / naive for _, ours, _, naive in pairs[1:]),
        "seconds": statistics.median(pair[0] for pair in pairs[1:]),
        "naive_s": statistics.median(pair[2] for pair in pairs[1:]),
    }


def in_a_process(arguments: argparse.Namespace, vocab_size: int, case: str) -> dict[str, float]:
    """Run one case in a fresh interpreter and read its line of JSON."""
    python = arguments.trl_python if case == "trl" else sys.executable
    command = [python, __file__, "--case", case, "--vocab_size", str(vocab_size)]
    for name in ("divergence", "threads", "device", "pairs"):
        command += [f"--{name}", str(getattr(arguments, name))]
    repository = str(Path(__file__).resolve().parents[1])
    quiet = os.environ | {"KINETO_LOG_LEVEL": "5", "PYTHONPATH": repository}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_case(arguments: argparse.Namespace) -> dict[str, float]:
    """What a child process measures."""
    torch.set_num_threads(arguments.threads)
    setting = Setting(arguments.vocab_size, arguments.divergence, arguments.device)
    case, _, way = arguments.case.partition("-")
    if case == "time":
        return measure_time(setting, way, arguments.pairs)
    return measure_memory(setting, arguments.case)


def run_all(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Every vocabulary and way, printed as they arrive."""
    if arguments.trl_python is None:
        print("no --trl_python is given: TRL's loss is left out")
    ways = [*TILED, "naive", *([] if arguments.trl_python is None else ["trl"])]
    names = {way: "" if way == "ours" else f"_{way}" for way in ways}
    figures: dict[str, dict[str, float]] = {f"units_peak{names[way]}": {} for way in ways}
    figures |= {f"time_ratio{names[way]}": {} for way in TILED}
    print(f"{arguments.divergence}, N {NUM_ROWS}, D {WIDTH}, float32, {arguments.device}")
    for vocab_size in QUICK_VOCABULARIES if arguments.quick else VOCABULARIES:
        for way in ways:
            found = in_a_process(arguments, vocab_size, way)
            figures[f"units_peak{names[way]}"][str(vocab_size)] = round(found["allocated"], 3)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"V {vocab_size:>6}  {way:<8}  peak units: {shown}", flush=True)
        for way in TILED:
            timed = in_a_process(arguments, vocab_size, f"time-{way}")
            figures[f"time_ratio{names[way]}"][str(vocab_size)] = round(timed["ratio"], 3)
            print(
                f"V {vocab_size:>6}  {way:<8}  {timed['seconds']:.2f} s, "
                f"naive {timed['naive_s']:.2f} s, median ratio {timed['ratio']:.2f}, "
                f"in CPU-seconds {timed['cpu_ratio']:.2f}",
                flush=True,
            )
    return figures


def parse_arguments() -> argparse.Namespace:
    """The command line; the last two arguments are for the child processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one vocabulary, two timed pairs")
    parser.add_argument("--divergence", choices=[*ALPHAS], default="forward_kl")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pairs", type=int, default=5, help="timed pairs of ours and naive")
    parser.add_argument("--trl_python", help="interpreter of an environment that holds TRL")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--vocab_size", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs = QUICK_PAIRS
    return arguments


def main() -> None:
    """Measure everything, or as a child process one case; the last line is JSON."""
    arguments = parse_arguments()
    print(json.dumps(run_case(arguments) if arguments.case else run_all(arguments)))


if __name__ == "__main__":
    main()
