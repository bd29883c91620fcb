"""Directories of made-up runs for the report's tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

TASKS = ("one", "two")
MATRIX = ((0.0, 0.1), (0.8, 0.1), (0.6, 0.9))
COST = {
    "num_steps": 10,
    "seconds": {"student": 20.0, "backward": 30.0},
    "completion_tokens": 400,
    "flops": {"rollout": 1e12, "teacher": 2e12, "student": 3e12, "sft": 3e12},
    "flops_vs_sft": 2.0,
    "peak_memory_bytes": 2**31,
}
CAPABILITIES = {
    "rows": [
        {"stage": 0, "after": None, "scores": {"mmlu": 0.5, "ifeval": 0.7}},
        {"stage": 2, "after": "two", "scores": {"mmlu": 0.4, "ifeval": 0.6}},
    ]
}
PASS_AT_K = {"pass_at_k": {"one": {"1": 0.5, "4": 0.75}, "two": {"1": 0.25, "4": 0.5}}}


def write_run(
    folder: Path,
    method: str = "SDFT",
    seed: int = 1,
    matrix: tuple[tuple[float | None, ...], ...] = MATRIX,
    tasks: tuple[str, ...] = TASKS,
    learning_rate: float = 1e-4,
    teacher: str = "ema",
    parts: bool = False,
    answer: str = "Lima.",
    trajectory: Sequence[Mapping[str, object]] = (),
    model: str = "tiny",
    options: Mapping[str, object] | None = None,
    first_stage: int = 0,
) -> Path:
    """A run's directory; ``parts`` adds all that need not be there."""
    folder.mkdir(parents=True)
    rows = stage_rows(tasks, matrix, first_stage)
    record = {"method": method, "model": model, "tasks": tasks, "rows": rows, "test": None}
    if parts:
        record["test"] = {"accuracy": dict.fromkeys(tasks, 0.5), "global_step": 10}
        write_parts(folder, tasks[0], len(matrix), answer)
        trajectory = trajectory or short_trajectory(tasks)
    if trajectory:
        lines = "".join(json.dumps(row) + "\n" for row in trajectory)
        (folder / "trajectory.jsonl").write_text(lines)
    own = {"learning_rate": learning_rate, "teacher": teacher, **(options or {})}
    config = {
        "seed_everything": seed,
        "run_dir": str(folder),
        "model": {"init_args": {"pretrained": model, **own}},
        "trainer": {"default_root_dir": str(folder), "logger": [{"save_dir": str(folder)}]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "retention.json").write_text(json.dumps(record))
    return folder


def stage_rows(
    tasks: tuple[str, ...], matrix: tuple[tuple[float | None, ...], ...], first_stage: int
) -> list[dict[str, object]]:
    """The rows of ``retention.json``, from a stage on."""
    return [
        {
            "stage": stage,
            "after": tasks[stage - 1] if stage else None,
            "global_step": 5 * stage,
            "accuracy": dict(zip(tasks, row, strict=True)),
        }
        for stage, row in enumerate(matrix)
        if stage >= first_stage
    ]


def short_trajectory(tasks: tuple[str, ...]) -> list[dict[str, object]]:
    """The start and the end of every stage."""
    return [
        {"task": task, "step": step, "accuracy": {task: step / 4}, "general_drift": step / 8}
        for task in tasks
        for step in (0, 4)
    ]


def write_parts(folder: Path, task: str, num_stages: int, answer: str) -> None:
    """Costs, prior capabilities, pass@k and an answer at every stage."""
    (folder / "cost.json").write_text(json.dumps(COST))
    (folder / "capabilities.json").write_text(json.dumps(CAPABILITIES))
    (folder / "pass_at_k.json").write_text(json.dumps(PASS_AT_K))
    (folder / "answers").mkdir()
    for stage in range(num_stages):
        line = {"task": task, "id": "7", "prompt": "What is the capital of Peru?"}
        line |= {"expected": "Lima", "score": 1.0, "answer": f"{answer} {stage}"}
        (folder / "answers" / f"stage-{stage}.jsonl").write_text(json.dumps(line))
