"""Studies: a grid of configurations and seeds, with each run in its own process.

A study can be stopped and started again at any time: finished runs are skipped, runs that were
killed resume from their last checkpoint, and failed runs are listed without stopping the others.
"""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sdft.runs.files import write_json_atomically

TRAIN = Path(__file__).parents[1] / "train.py"
FINISHED = "finished.json"
KEYS = {
    "the study": {"config": list, "arms": dict, "runs": list},
    "an arm": {"config": list, "options": dict},
    "an entry of runs": {"arms": list, "grid": dict, "seeds": list},
}


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One run of a study.

    Args:
        name: The directory's name: arm, values of the grid, seed.
        arguments: Arguments of ``train.py``, without the run's directory.
    """

    name: str
    arguments: tuple[str, ...]

    def command(self, folder: Path) -> list[str]:
        """The full command, which also resumes a run that was killed."""
        place = ["--run_dir", str(folder / self.name), "--ckpt_path", "auto"]
        return [sys.executable, str(TRAIN), *self.arguments, *place]


def read_study(path: Path) -> list[StudyRun]:
    """All runs of a study, in the order in which they are to be run: seed by seed.

    The file has ``config``, configurations that all runs share; ``arms``, name -> further
    ``config`` and ``options``; and ``runs``, a list of which each entry has ``seeds`` and
    optionally ``arms`` (all of them) and ``grid``: option -> values.

    Raises:
        ValueError: The file does not have this form; names the key.
        FileNotFoundError: The file does not exist.
    """
    try:
        study = _checked(yaml.safe_load(path.read_text("utf-8")), "the study")
        arms = {name: _checked(arm, "an arm") for name, arm in study.get("arms", {}).items()}
        runs = [
            run
            for entry in study.get("runs", [])
            for run in _runs(study.get("config", []), arms, _checked(entry, "an entry of runs"))
        ]
        _refuse_none_or_twice(runs)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    return runs


def _checked(value: object, where: str) -> dict[str, Any]:
    known = KEYS[where]
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r:.60}; it must have {', '.join(known)}")
    for key, item in value.items():
        if key not in known:
            raise ValueError(f"{where} has {key!r}; it may have {', '.join(known)}")
        if not isinstance(item, known[key]):
            raise ValueError(f"{key!r} of {where} is {item!r:.60}; give a {known[key].__name__}")
    return value


def _runs(
    shared: Sequence[str], arms: Mapping[str, Mapping[str, Any]], entry: Mapping[str, Any]
) -> Iterator[StudyRun]:
    grid = entry.get("grid", {})
    names = entry.get("arms", list(arms))
    if unknown := [name for name in names if name not in arms]:
        raise ValueError(f"runs name the arm {unknown[0]!r}; there are {', '.join(arms)}")
    for seed, name in itertools.product(entry.get("seeds", []), names):
        arm = arms[name]
        for values in itertools.product(*grid.values()):
            options = {**arm.get("options", {}), **dict(zip(grid, values, strict=True))}
            options["seed_everything"] = seed
            yield StudyRun(
                "_".join(map(str, [name, *values, f"seed{seed}"])),
                (
                    "fit",
                    *_flags("config", [*shared, *arm.get("config", [])]),
                    *(part for key, value in options.items() for part in _flags(key, [value])),
                ),
            )


def _flags(name: str, values: Sequence[object]) -> Iterator[str]:
    for value in values:
        text = value if isinstance(value, str) else json.dumps(value)
        yield from (f"--{name}", text)


def _refuse_none_or_twice(runs: Sequence[StudyRun]) -> None:
    if not runs:
        raise ValueError("there are no runs; give runs with seeds, and arms")
    seen: set[str] = set()
    for run in runs:
        if run.name in seen:
            raise ValueError(f"the run {run.name} is there twice; take one out of runs")
        seen.add(run.name)


@dataclass
class Runner:
    """Runs those runs of a study that are not finished.

    Args:
        folder: Parent of the run directories; the processes' output goes to its ``logs``.
        jobs: Number of runs at a time.
    """

    folder: Path
    jobs: int = 1
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _stopping: bool = False

    def run(self, runs: Sequence[StudyRun]) -> list[str]:
        """Run them all.

        Returns:
            Names of those that failed.

        Raises:
            ValueError: A finished run was made by another command.
            KeyboardInterrupt: The study is stopped, and its runs have been asked to save and end.
        """
        waiting = [run for run in runs if not self.is_finished(run)]
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                ended = list(pool.map(self._one, waiting))
            except BaseException:
                self._stop()
                raise
        return [run.name for run, code in zip(waiting, ended, strict=True) if code]

    def is_finished(self, run: StudyRun) -> bool:
        """Whether the run has already finished with the same command."""
        file = self.folder / run.name / FINISHED
        if not file.exists():
            return False
        if json.loads(file.read_text("utf-8"))["arguments"] != list(run.arguments):
            raise ValueError(
                f"{file.parent} was made by another command than the study's: choose another "
                "--folder, or delete it"
            )
        return True

    def log(self, name: str) -> Path:
        """The file with the output of the run's process."""
        return self.folder / "logs" / f"{name}.log"

    def _one(self, run: StudyRun) -> int:
        if self._stopping:
            return 1
        log = self.log(run.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            process = subprocess.Popen(run.command(self.folder), stdout=stream, stderr=stream)
            self._processes.append(process)
            code = process.wait()
        if code == 0:
            record = {"arguments": list(run.arguments)}
            write_json_atomically(self.folder / run.name / FINISHED, record)
        sys.stdout.write(f"{run.name}: {'finished' if code == 0 else f'failed, see {log}'}\n")
        sys.stdout.flush()
        return code

    def _stop(self) -> None:
        """Ask running processes to save and end."""
        self._stopping = True
        for process in self._processes:
            if process.poll() is None:
                process.terminate()


def slurm_script(study: Path, folder: Path, runs: Sequence[StudyRun], jobs: int) -> str:
    """A job array with one run each; ``study.py`` on the same folder then writes the report."""
    shared = ["python", "study.py", str(study), "--folder", str(folder)]
    lines = [shlex.quote(shlex.join([*shared, "--only", run.name])) for run in runs]
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={study.stem}",
            f"#SBATCH --array=0-{len(runs) - 1}%{jobs}",
            "#SBATCH --requeue",
            "runs=(",
            *(f"  {line}" for line in lines),
            ")",
            'eval "${runs[$SLURM_ARRAY_TASK_ID]}"',
            "",
        ]
    )
