"""Kills a run repeatedly, resumes it, and compares the outcome with an uninterrupted run.

    python benchmarks/chaos.py --kills 20

Every leg is the same command, ``train.py fit … --ckpt_path auto``, on the tiny random model, in a
forked process that dies by SIGKILL: at a random instant of the leg, or at a random instant of the
evaluation, of a checkpoint's writing, of an export or of a training step. Compared bit for bit are
``last.ckpt`` (weights, teacher, optimizer, schedule, counters), the checkpoints and exports of the
stages, ``retention.json``, and the counts in ``cost.json``. A run that ends before its last kill
is compared, and another one starts. ``--quick`` kills three times. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from command_line.continual_cli import main

# Where to kill -> functions then on the main thread's stack; at any instant if there are none.
PLACES = {
    "anywhere": set(),
    "evaluation": {"validation_step", "test_step"},
    "checkpoint": {"write_checkpoint"},
    "export": {"save_model"},
    "step": {"training_step", "optimizer_step"},
}
TASKS = ("routing", "tool_call", "new_facts")
NUM_STAGES = 6


def kill_and_compare() -> None:
    """Run the reference, then the runs to be killed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--quick", action="store_true", help="three kills")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(chaos(3 if options.quick else options.kills, random.Random(options.seed))))


def chaos(num_kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill and resume until ``num_kills`` processes have died; return the outcome."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_config(folder)
        began = time.perf_counter()
        if leg(config, folder / "reference", folder) != 0:
            raise SystemExit((folder / "log").read_text(encoding="utf-8"))
        seconds = time.perf_counter() - began
        places: list[str] = []
        found: list[str] = []
        num_runs = 0
        while len(places) < num_kills:
            num_runs += 1
            run_dir = folder / f"run-{num_runs}"
            places += killed_run(config, run_dir, folder, num_kills - len(places), seconds, rng)
            found += [f"run {num_runs}: {each}" for each in compared(run_dir, folder / "reference")]
        print(f"{num_runs} runs, killed in: {dict(Counter(places))}")
    return {"kills": len(places), "identical": not found, "differences": found}


def killed_run(
    config: Path, run_dir: Path, folder: Path, num_kills: int, seconds: float, rng: random.Random
) -> list[str]:
    """Run once in legs, with at most ``num_kills`` kills; return where each one struck."""
    places: list[str] = []
    while True:
        left = num_kills - len(places)
        place = rng.choice(list(PLACES)) if left else None
        # Short legs, so that all kills happen before the run is through.
        delay = rng.uniform(0, 1.5 * seconds / num_kills)
        code = leg(config, run_dir, folder, place, delay if place == "anywhere" else rng.random())
        if code == 0:
            return places
        if code != -signal.SIGKILL or place is None:
            raise SystemExit(
                f"a leg ended with {code}:\n{(folder / 'log').read_text(encoding='utf-8')}"
            )
        places.append(place)


def leg(
    config: Path, run_dir: Path, folder: Path, place: str | None = None, chance: float = 0.0
) -> int:
    """Run the command in a forked process; return its exit code, or minus the ending signal."""
    child = os.fork()
    if child == 0:
        os._exit(_leg_in_child(config, run_dir, folder, place, chance))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _leg_in_child(
    config: Path, run_dir: Path, folder: Path, place: str | None, chance: float
) -> int:
    with (folder / "log").open("w", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        if place is not None:
            sys.setswitchinterval(1e-4)
            arguments = (threading.main_thread().ident, PLACES[place], chance)
            threading.Thread(target=_kill, args=arguments, daemon=True).start()
        try:
            main(["fit", f"--config={config}", f"--run_dir={run_dir}", "--ckpt_path=auto"])
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


def _kill(main_thread: int, functions: set[str], chance: float) -> None:
    """Die after ``chance`` seconds, or at a random time within one of the functions."""
    if not functions:
        time.sleep(chance)
    visits = 0
    while functions and visits < 1 + 20 * chance:
        time.sleep(5e-4)
        visits += _is_running(main_thread, functions)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_running(thread: int, functions: set[str]) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name in functions:
            return True
        frame = frame.f_back
    return False


def compared(folder: Path, reference: Path) -> list[str]:
    """Descriptions of where the outcomes of two runs differ."""
    found = []
    if (folder / "retention.json").read_bytes() != (reference / "retention.json").read_bytes():
        found.append("retention.json")
    costs = [json.loads((path / "cost.json").read_text()) for path in (folder, reference)]
    for name in ("num_steps", "completion_tokens", "flops"):
        if costs[0][name] != costs[1][name]:
            found.append(f"cost.json: {name}")
    for path in sorted(reference.glob("exports/*/model.safetensors")):
        if (folder / path.relative_to(reference)).read_bytes() != path.read_bytes():
            found.append(str(path.relative_to(reference)))
    for path in sorted(reference.glob("checkpoints/*.ckpt")):
        name = path.relative_to(reference)
        own, expected = (torch.load(each, weights_only=True) for each in (folder / name, path))
        for part in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            found += different(own[part], expected[part], f"{name}/{part}")
    return found


def different(own: Any, expected: Any, path: str) -> list[str]:
    """Descriptions of where two nested values differ; tensors are compared bit for bit."""
    if isinstance(expected, torch.Tensor):
        same = own.dtype == expected.dtype and torch.equal(own, expected)
        return [] if same else [path]
    if isinstance(expected, dict):
        if own.keys() != expected.keys():
            return [f"{path}: other names"]
        return [each for key in own for each in different(own[key], expected[key], f"{path}/{key}")]
    if isinstance(expected, list | tuple):
        pairs = enumerate(zip(own, expected, strict=True))
        return [each for i, pair in pairs for each in different(*pair, f"{path}/{i}")]
    return [] if own == expected else [path]


def write_config(folder: Path) -> Path:
    """Six stages of three steps on the tiny model, with a checkpoint every other step."""
    tasks = [
        {
            "name": f"{TASKS[k % len(TASKS)]}_{k}", "generator": TASKS[k % len(TASKS)],
            "num_train": 10, "num_validation": 2, "num_test": 2,
        }
        for k in range(NUM_STAGES)
    ]  # fmt: skip
    model = {"pretrained": "tiny-random", "max_new_tokens": 6, "learning_rate": 1e-2}
    config = {
        "seed_everything": 1,
        "model": {"class_path": "lightning_modules.SDFTModule", "init_args": model},
        "data": {"tasks": tasks, "batch_size": 4, "teacher_template": "dialogue"},
        "checkpoint": {"every_n_steps": 2},
        "trainer": {"accelerator": "cpu", "deterministic": True},
    }
    file = folder / "chaos.yaml"
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    return file


if __name__ == "__main__":
    kill_and_compare()
