"""Measures a GPU in minutes, with one command and one line of JSON.

    python -m benchmarks.gpu [--minutes 8] [--device cuda] [--tiny] [--shape FILE] [--study FILE]
                             [--folder FOLDER] [--jobs 8]

In this order, each part only if there is time:

1. ceilings: measured speed of bfloat16 matrix products and memory copies;
2. the tests marked ``gpu``;
3. steps of SmolLM2-135M by phase, with each engine whose package is installed;
4. a random model of Qwen2.5-7B's shape, all weights trained in ``memory: lean``: seconds by phase,
   peak memory beside what ``sdft plan`` says, and fractions of both ceilings;
5. the study of what learning tool calls costs, until the time is up: how many of its runs finished,
   and each one's last accuracy and drift. Given the same ``--folder``, the same command continues
   it.

Each part's figures also go to the standard error when it ends. Nothing is downloaded.
``--device cpu --tiny`` runs the same code on small sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.partial_study import partial_study
from sdft.evaluation.memory_plan import PlannedStep, plan_memory
from sdft.loss.distillation import distillation_loss
from sdft.loss.divergence_registry import make_divergence
from sdft.loss.hidden_states import LossPositions, hidden_states_in_parts
from sdft.model.head import VocabularyHead
from sdft.model.lean_adamw import LeanAdamW
from sdft.model.pretrained import load_model, model_config
from sdft.model.teacher import make_teacher
from sdft.rollout.engine_registry import Engine, make_engine
from sdft.rollout.request import RolloutRequest, SamplingSettings

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPES = REPOSITORY / "configs" / "gpu" / "shapes"
STUDY = REPOSITORY / "configs" / "studies" / "tool_call.yaml"
SHORTEST_STUDY = 20.0  # seconds; less does not even start a run
LEARNING_RATE = 1e-5


@dataclass
class Sizes:
    """Rows and tokens of a step."""

    rows: int
    prompt: int
    completion: int
    micro_batch: int


@dataclass
class Clock:
    """Times the phases; waits for the device at the end of each."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def timed(self, phase: str, work: Callable[[], Any]) -> Any:
        """What the work returns."""
        start = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds[phase] = round(time.perf_counter() - start, 4)
        return result


class Step:
    """One SDFT step on a model, without a trainer: sample, score, differentiate, update.

    Args:
        model: The student.
        engine: The rollout engine.
        lean: Whether weights are bfloat16.
        sizes: Rows and tokens; completions are always of full length.
    """

    def __init__(self, model: PreTrainedModel, engine: Engine, lean: bool, sizes: Sizes) -> None:
        self.model, self.sizes, self.device = model, sizes, model.device
        self.engine = engine
        self.teacher = make_teacher(model, {"kind": "ema"})
        optimizer = LeanAdamW if lean else torch.optim.AdamW
        self.optimizer = optimizer(model.parameters(), lr=LEARNING_RATE)
        self.lean = lean

    def __call__(self, number: int) -> dict[str, float]:
        """Seconds by phase."""
        clock, sizes = Clock(self.device), self.sizes
        prompts = [[5 + (row + at) % 97 for at in range(sizes.prompt)] for row in range(sizes.rows)]
        shown = [[*prompt, *prompt[: sizes.prompt // 2]] for prompt in prompts]
        request = RolloutRequest(
            prompts,
            SamplingSettings(sizes.completion),
            frozenset(),
            seeds=[number * sizes.rows + row for row in range(sizes.rows)],
        )
        autocast = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        with autocast:
            rollout = clock.timed("rollout", lambda: self.engine(self.model, request))
            positions = LossPositions.of(rollout.completions, device=self.device)
            teacher = clock.timed("teacher", lambda: self._scored(shown, rollout, positions))
            loss = clock.timed("student", lambda: self._loss(prompts, rollout, positions, teacher))
        clock.timed("backward", loss.backward)
        clock.timed("optimizer", self.optimizer.step)
        self.optimizer.zero_grad()
        clock.timed("teacher_update", lambda: self.teacher.update(self.model, number + 1))
        return clock.seconds

    @torch.no_grad()
    def _scored(self, prompts: list[list[int]], rollout: Any, positions: LossPositions) -> Tensor:
        with self.teacher.scoring(self.model) as model:
            size = self.sizes.micro_batch
            return hidden_states_in_parts(model, prompts, rollout.completions, positions, size)

    def _loss(
        self, prompts: list[list[int]], rollout: Any, positions: LossPositions, teacher: Tensor
    ) -> Tensor:
        head = VocabularyHead.of(self.model, check=False)
        student = hidden_states_in_parts(
            self.model, prompts, rollout.completions, positions, self.sizes.micro_batch
        )
        weights = torch.full((len(positions),), 1 / len(positions), device=self.device)
        return distillation_loss(
            student,
            head,
            teacher,
            self.teacher.head(head),
            tokens=positions.tokens,
            weights=weights,
            divergence=make_divergence("forward_kl"),
        ).loss


def ceilings(device: torch.device, tiny: bool) -> dict[str, float]:
    """Products in bfloat16, in TFLOP/s, and copies in memory, in GB/s: the best of a few."""
    size = 256 if tiny else 8192
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    source = torch.empty((1 << 20) if tiny else (1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    products, copies = [], []
    for _ in range(5):
        clock = Clock(device)
        clock.timed("product", lambda: left @ left)
        clock.timed("copy", lambda: target.copy_(source))
        products.append(clock.seconds["product"])
        copies.append(clock.seconds["copy"])
    least = 1e-4  # what the clock resolves
    return {
        "tflops": round(2 * size**3 / max(min(products), least) / 1e12, 3),
        "gb_per_s": round(2 * source.numel() / max(min(copies), least) / 1e9, 1),
    }


def gpu_tests(seconds: float) -> str:
    """The last line of pytest over the tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", "tests"]
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not finished within {seconds:.0f} s"
    return done.stdout.strip().splitlines()[-1]


def small_steps(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Time the second step of a packaged model, with each engine, weights in float32."""
    name = "tiny-random" if tiny else "smollm2-135m-instruct"
    sizes = Sizes(4, 8, 8, 2) if tiny else Sizes(32, 256, 256, 16)
    engines = ["in_place", "generate"]
    engines += ["continuous_batching", "generate static_cache"] if device.type == "cuda" else []
    found: dict[str, Any] = {"model": name}
    for label in engines:
        engine, *switches = label.split()
        try:
            model = load_model(name).model.to(device).train()
            sampler = make_engine(engine, **dict.fromkeys(switches, True))
            step = Step(model, sampler, lean=False, sizes=sizes)
            first = step(0)["rollout"]
            found[label] = dict(step(1), first_rollout=first)
        except (ValueError, RuntimeError) as error:
            found[label] = str(error)[:200]
            continue
        tokens = sizes.rows * sizes.completion
        found[label]["tokens_per_s"] = round(tokens / found[label]["rollout"])
    return found


def lean_steps(
    device: torch.device, shape: Path, sizes: Sizes, limits: dict[str, float]
) -> dict[str, Any]:
    """Two steps of a random model, the second counted, against the plan and the ceilings."""
    config = model_config(str(shape))
    plan = plan_memory(
        PlannedStep(
            config,
            memory="lean",
            rows=sizes.rows,
            micro_batch_size=sizes.micro_batch,
            activation_checkpointing=True,
            prompt_tokens=sizes.prompt + sizes.prompt // 2,
            completion_tokens=sizes.completion,
            device_type=device.type,
        )
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with device:
        build: Any = AutoModelForCausalLM.from_config
        model = build(config, dtype=torch.bfloat16)
    model.activation_checkpointing_enable({"use_reentrant": False})
    step = Step(model.train(), make_engine("in_place"), lean=True, sizes=sizes)
    step(0)
    seconds = step(1)
    read = 2 * plan.num_parameters * sizes.completion / seconds["rollout"]
    # FLOPs of a step per parameter and token: teacher 2, student 2 + 4, recomputation 2.
    operations = sizes.rows * plan.num_parameters * 2 * (sizes.prompt * 1.5 + sizes.completion)
    operations += sizes.rows * plan.num_parameters * 8 * (sizes.prompt + sizes.completion)
    busy = sum(seconds[phase] for phase in ("teacher", "student", "backward"))
    found: dict[str, Any] = {"sizes": vars(sizes), "phases": seconds}
    found["seconds_per_step"] = round(sum(seconds.values()), 3)
    found["share_of_matmul_ceiling"] = round(operations / busy / 1e12 / limits["tflops"], 3)
    found["share_of_memory_ceiling"] = round(read / 1e9 / limits["gb_per_s"], 3)
    found["planned_peak_gib"] = round(plan.peak / 2**30, 2)
    if device.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return found


def main() -> None:
    """Measure as long as there is time, then print the line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to test this command")
    parser.add_argument("--shape", type=Path, default=SHAPES / "qwen2.5-7b.json")
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu_study"), help="of its runs")
    parser.add_argument("--jobs", type=int, default=8, help="runs of the study at a time")
    options = parser.parse_args()
    device, start = torch.device(options.device), time.perf_counter()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__}

    def left() -> float:
        return 60 * options.minutes - (time.perf_counter() - start)

    def tell(part: str, figures: Any) -> Any:
        sys.stderr.write(f"{part}: {json.dumps(figures)}\n")
        found[part] = figures
        return figures

    limits = tell("ceilings", ceilings(device, options.tiny))
    if not options.tiny:
        tell("gpu_tests", gpu_tests(left() / 4))
    tell("small", small_steps(device, options.tiny))
    # Measured at half the length first: what is printed if there is no time for the whole.
    sizes = [Sizes(2, 8, 8, 1)] if options.tiny else [Sizes(32, 512, n, 8) for n in (128, 512)]
    for each in sizes:
        began = time.perf_counter()
        tell("lean", lean_steps(device, options.shape, each, limits))
        if left() < 4 * (time.perf_counter() - began):
            break
    if left() > SHORTEST_STUDY:
        tell("study", partial_study(options.study, options.folder, left(), options.jobs))
    found["minutes"] = round((time.perf_counter() - start) / 60, 2)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
