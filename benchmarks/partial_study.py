"""Runs a study for a limited time, and says how far its runs came."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line.studies import Runner, read_study
from sdft.runs.jsonl import read_records

REPOSITORY = Path(__file__).resolve().parents[1]
SECONDS_TO_SAVE = 60.0


def partial_study(file: Path, folder: Path, seconds: float, jobs: int = 1) -> dict[str, Any]:
    """Start or continue a study, and stop it after some time; its runs save and end.

    Args:
        file: The study, such as ``configs/studies/tool_call.yaml``.
        folder: Folder of its runs; the same command continues there.
        seconds: After which it is stopped.
        jobs: Runs at a time.

    Returns:
        How many runs there are and finished, and of each with a trajectory its last row: optimizer
        steps, accuracy by task, and drift in nats per token on general prompts.
    """
    command = [sys.executable, str(REPOSITORY / "study.py"), str(file), "--folder", str(folder)]
    command += ["--jobs", str(jobs)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "study.log").open("ab") as log:
        study = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            study.wait(seconds)
        except subprocess.TimeoutExpired:
            _stop(study)
    runs = read_study(file)
    found: dict[str, Any] = {"runs": len(runs), "finished": 0, "last_rows": {}}
    for run in runs:
        found["finished"] += Runner(folder).is_finished(run)
        trajectory = folder / run.name / "trajectory.jsonl"
        if trajectory.exists():
            *_, (_, last) = read_records(trajectory)
            names = ("global_step", "accuracy", "general_drift")
            found["last_rows"][run.name] = {name: last[name] for name in names}
    return found


def _stop(study: subprocess.Popen[bytes]) -> None:
    """Ask the study to end; end it and its runs if it does not."""
    study.terminate()
    try:
        study.wait(SECONDS_TO_SAVE)
    except subprocess.TimeoutExpired:
        os.killpg(study.pid, signal.SIGKILL)
        study.wait()
