"""Peak memory and time of the distillation loss alone, against losses that hold all logits.

    python benchmarks/memory.py [--quick] [--divergence NAME] [--threads N] [--trl_python PATH]

Four ways from the same hidden states to the same gradients:

- ours: `sdft.loss.distillation.distillation_loss`, the divergence's gradient in closed form;
- autograd: the same with a divergence that has only values, so that autograd runs on each tile;
- naive: project all rows, log_softmax both, `kl_div`, sum, backward;
- trl: TRL's own full-vocabulary loss on projected logits, in TRL's interpreter where one is given.

Memory is counted in units of one float32 (N, V) tensor and beyond the inputs (hidden states,
heads) and the gradients: the peak of the live bytes that PyTorch's allocator hands out during
forward and backward, less the bytes of the gradients. On the CPU, the profiler reports each
allocation, so the peak is exact; the resident set would miss reused pages and
count allocator slack. Buffers inside the matrix-product library are not PyTorch's: the resident
peak of a fresh process is printed too, to check that they are not large. The naive ways
allocate their gradients after their peak, so subtracting the gradients favours them.

Time is forward plus backward, with two ways taking turns: ours / naive (`time_ratio`) and autograd
/ ours (`time_ratio_autograd`), medians over the pairs in wall-clock time. CPU-seconds are printed
too: unlike wall-clock time, they do not count other load on the machine. Every case runs in a
process of its own.
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
from loss_ways import ALPHAS, NUM_ROWS, WIDTH, Setting
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

VOCABULARIES = (32_768, 49_152, 152_064, 262_144)
QUICK_VOCABULARIES = (49_152,)
QUICK_PAIRS = 2
COMPARED = {"ours": "naive", "autograd": "ours"}
"""Way -> the way that its time is divided by."""
Loss = Callable[[], Tensor]


def step(setting: Setting, loss: Loss) -> tuple[float, float, float]:
    """Wall-clock and CPU seconds of one forward and backward pass, and the loss."""
    for each in setting.parameters():
        each.grad = None
    synchronize(setting)
    start, cpu_start = time.perf_counter(), time.process_time()
    value = loss()
    value.backward()
    synchronize(setting)
    return time.perf_counter() - start, time.process_time() - cpu_start, value.item()


def synchronize(setting: Setting) -> None:
    """Wait for the device, so that its work is timed."""
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
    """Bytes in units of one float32 (N, V)."""
    return num_bytes / (4 * NUM_ROWS * setting.student_layer.out_features)


def measure_memory(setting: Setting, way: str) -> dict[str, float]:
    """Both peaks of one way; the resident one first, while the process is fresh."""
    loss = getattr(setting, way)
    found = {}
    if not setting.hidden.is_cuda:
        Setting(64, setting.divergence, "cpu").ours().backward()  # start threads and load libraries
        found["resident"] = resident_units(setting, loss)
    return {"allocated": peak_units(setting, loss), **found}


def measure_time(setting: Setting, way: str, num_pairs: int) -> dict[str, float]:
    """Medians over pairs of one way / the way it is compared with, after one unmeasured pair."""
    pairs = []
    for _ in range(num_pairs + 1):
        *seconds, loss = step(setting, getattr(setting, way))
        *other, other_loss = step(setting, getattr(setting, COMPARED[way]))
        if abs(loss - other_loss) > 1e-4 * abs(other_loss):
            raise RuntimeError(f"the losses differ: {way} {loss}, {COMPARED[way]} {other_loss}")
        pairs.append((*seconds, *other))
    return {
        "ratio": statistics.median(first / second for first, _, second, _ in pairs[1:]),
        "cpu_ratio": statistics.median(first / second for _, first, _, second in pairs[1:]),
        "seconds": statistics.median(pair[0] for pair in pairs[1:]),
        "other_s": statistics.median(pair[2] for pair in pairs[1:]),
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
    """Measure one case, in a child process."""
    torch.set_num_threads(arguments.threads)
    setting = Setting(arguments.vocab_size, arguments.divergence, arguments.device)
    case, _, way = arguments.case.partition("-")
    if case == "time":
        return measure_time(setting, way, arguments.pairs)
    return measure_memory(setting, arguments.case)


def run_all(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure every vocabulary and way; print each result as it arrives."""
    if arguments.trl_python is None:
        print("no --trl_python is given: TRL's loss is left out")
    ways = [*COMPARED, "naive", *([] if arguments.trl_python is None else ["trl"])]
    names = {way: "" if way == "ours" else f"_{way}" for way in ways}
    figures: dict[str, dict[str, float]] = {f"units_peak{names[way]}": {} for way in ways}
    figures |= {f"time_ratio{names[way]}": {} for way in COMPARED}
    print(f"{arguments.divergence}, N {NUM_ROWS}, D {WIDTH}, float32, {arguments.device}")
    for vocab_size in QUICK_VOCABULARIES if arguments.quick else VOCABULARIES:
        for way in ways:
            found = in_a_process(arguments, vocab_size, way)
            figures[f"units_peak{names[way]}"][str(vocab_size)] = round(found["allocated"], 3)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"V {vocab_size:>6}  {way:<8}  peak units: {shown}", flush=True)
        for way in COMPARED:
            timed = in_a_process(arguments, vocab_size, f"time-{way}")
            figures[f"time_ratio{names[way]}"][str(vocab_size)] = round(timed["ratio"], 3)
            print(
                f"V {vocab_size:>6}  {way:<8}  {timed['seconds']:.2f} s, "
                f"{COMPARED[way]} {timed['other_s']:.2f} s, median ratio {timed['ratio']:.2f}, "
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
    """Measure everything, or one case as a child process; the last line is JSON."""
    arguments = parse_arguments()
    print(json.dumps(run_case(arguments) if arguments.case else run_all(arguments)))


if __name__ == "__main__":
    main()
