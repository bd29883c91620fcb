"""``sdft plan``: says in seconds, without loading weights, whether a configuration fits a GPU."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

from transformers import PreTrainedConfig

from command_line.continual_cli import ContinualCLI, parsed
from sdft.evaluation.memory_plan import MemoryPlan, PlannedStep, plan_memory
from sdft.model.lora import LoRA
from sdft.model.pretrained import model_config

UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6}
GIB = UNITS["GiB"]
SPARE = 0.1  # fraction of the GPU: CUDA's context, fragmentation, and the unforeseen
MOST_PROMPT_TOKENS = 1024  # tokens, if the data module sets no limit


class _Parsed(ContinualCLI):
    """The resolved configuration of ``fit``; nothing is built from it."""

    def before_instantiate_classes(self) -> None:
        """No run directory is made."""

    def instantiate_classes(self) -> None:
        """Neither model nor data are loaded."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is trained."""


def plan_main(args: list[str]) -> None:
    """Print the plan; exit with code 1 unless it fits with a tenth to spare."""
    parser = argparse.ArgumentParser(
        prog="sdft plan",
        usage="%(prog)s --config CONFIG [--gpu GPU] [options]",
        description=__doc__,
        epilog="All options of fit are taken, --config among them, several times if need be.",
    )
    parser.add_argument("--gpu", default="139GiB", help="memory of a GPU, such as 80GB or 139GiB")
    parser.add_argument("--shape", help="config.json of the model, if the hub cannot be reached")
    parser.add_argument("--prompt_tokens", type=int, help="longest prompt, the teacher's")
    parser.add_argument("--ranks", type=int, help="processes, if the configuration says auto")
    options, rest = parser.parse_known_args(args)
    sys.argv = sys.argv[:1]  # Lightning warns of arguments given twice
    try:
        limit = parsed_bytes(options.gpu)
        config = parsed(["fit", *rest], _Parsed).config["fit"]
        step = planned_step(config, options)
        plan = plan_memory(step)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    sys.stdout.write(in_words(plan, step, limit, options.gpu))
    raise SystemExit(0 if plan.peak <= (1 - SPARE) * limit else 1)


def parsed_bytes(text: str) -> int:
    """Bytes of a size such as 80GB.

    Raises:
        ValueError: The text is not a size.
    """
    match = re.fullmatch(rf"([\d.]+)\s*({'|'.join(UNITS)})", text)
    if match is None:
        raise ValueError(f"--gpu is {text!r}; it must be a number and {' or '.join(UNITS)}")
    return int(float(match[1]) * UNITS[match[2]])


def planned_step(config: Any, options: argparse.Namespace) -> PlannedStep:
    """The sizes that determine memory, from a resolved configuration.

    Raises:
        ValueError: The number of processes is not known, or the model's shape is not available.
    """
    model, data = config.model.init_args, config.data
    ranks = _ranks(config.trainer, options.ranks)
    teacher = dict(model.get("teacher") or {"kind": "student"})
    other = teacher.get("pretrained")
    engine_options = dict(model.rollout_engine_options or {})
    return PlannedStep(
        config=_shape(model.pretrained, options.shape),
        memory=model.memory,
        lora=None if model.lora is None else LoRA(**dict(model.lora)),
        teacher=teacher.get("kind", "ema"),
        teacher_config=None if other is None else model_config(other),
        rows=-(-data.batch_size // ranks),
        micro_batch_size=model.micro_batch_size,
        activation_checkpointing=model.activation_checkpointing,
        prompt_tokens=options.prompt_tokens or data.max_prompt_tokens or MOST_PROMPT_TOKENS,
        completion_tokens=model.max_new_tokens,
        autocast=str(config.trainer.precision) == "bf16-mixed",
        engine=model.rollout_engine,
        max_cache_tokens=engine_options.get("max_cache_tokens"),
        num_shards=ranks if "ModelParallel" in str(config.trainer.strategy) else 1,
    )


def _shape(name: str, file: str | None) -> PreTrainedConfig:
    try:
        return model_config(file or name)
    except ValueError as error:
        hint = "" if file else "; where the hub is out of reach, give a config.json with --shape"
        raise ValueError(f"{error}{hint}") from error


def _ranks(trainer: Any, given: int | None) -> int:
    devices = given or trainer.devices
    if devices in ("auto", -1, "-1"):
        raise ValueError(f"trainer.devices is {devices}: say how many with --ranks")
    number = len(devices) if isinstance(devices, list) else int(devices)
    return number if given else number * int(trainer.num_nodes)


def in_words(plan: MemoryPlan, step: PlannedStep, limit: int, gpu: str) -> str:
    """Parts, phases and verdict, one per line."""
    lines = [
        f"{plan.num_parameters / 1e9:.2f} billion parameters, {plan.num_trained / 1e9:.3f} trained",
        f"{step.rows} rows a rank, prompts of {step.prompt_tokens} tokens, completions of "
        f"{step.completion_tokens}",
        *(
            f"  {name:<28}{size / GIB:8.2f} GiB"
            for name, size in plan.parts.items()
            if size > GIB / 200
        ),
        "most at a time, by phase:",
        *(f"  {name:<28}{size / GIB:8.2f} GiB" for name, size in plan.phases.items()),
    ]
    spare = 1 - plan.peak / limit
    verdict = "fits" if spare >= SPARE else "is too tight for" if spare >= 0 else "does not fit"
    sizes = f"{plan.peak / GIB:.1f} GiB of {limit / GIB:.1f}"
    lines.append(f"{verdict} {gpu}: {sizes}, {spare:.0%} to spare")
    return "\n".join(lines) + "\n"
