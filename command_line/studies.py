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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from sdft.runs.file_values import UniqueKeyLoader, yaml_problem
from sdft.runs.files import write_json_atomically

TRAIN = Path(__file__).parents[1] / "train.py"
FINISHED = "finished.json"
KEYS = {
    "the study": {"config": list, "start": dict, "arms": dict, "runs": list},
    "the start": {"config": list, "options": dict, "export": str},
    "an arm": {"config": list, "options": dict},
    "an entry of runs": {"arms": list, "grid": dict, "seeds": list},
}


@dataclass(frozen=True, slots=True)
class StudyRun:
    """One run of a study.

    Args:
        name: The directory's name: arm, values of the grid, seed.
        arguments: Arguments of ``train.py``, without directories.
        seed: Its ``seed_everything``.
        start: The run whose exported model this one begins from; None for its own configuration's.
        export: The model's folder among the exports of that run.
    """

    name: str
    arguments: tuple[str, ...]
    seed: int
    start: StudyRun | None = None
    export: str = ""

    def command(self, folder: Path) -> list[str]:
        """The full command, which also resumes a run that was killed."""
        place = ["--run_dir", str(folder / self.name), "--ckpt_path", "auto"]
        if self.start is not None:
            place += ["--model.init_args.pretrained", str(self.model(folder))]
        return [sys.executable, str(TRAIN), *self.arguments, *place]

    def model(self, folder: Path) -> Path:
        """The exported model that the run begins from."""
        assert self.start is not None
        return folder / self.start.name / "exports" / self.export

    def record(self) -> dict[str, list[str]]:
        """What was run, for the run's directory."""
        start = {} if self.start is None else {"start": [*self.start.arguments, self.export]}
        return {"arguments": list(self.arguments), **start}


def read_study(path: Path) -> list[StudyRun]:
    """All runs of a study, in the order in which they are to be run: seed by seed.

    The file has ``config``, configurations that all runs share; ``arms``, name -> further
    ``config`` and ``options``; and ``runs``, a list of which each entry has ``seeds`` and
    optionally ``arms`` (all of them) and ``grid``: option -> values. With ``start``, which has
    ``config``, ``options`` and ``export``, a run of its own for each seed comes first, and the runs
    of the arms begin from the model that it exported under that name, such as ``stage-1-routing``.

    Raises:
        ValueError: The file does not have this form; names the key.
        FileNotFoundError: The file does not exist.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the file of a study")
    try:
        study = _checked(yaml.load(path.read_text("utf-8"), UniqueKeyLoader), "the study")
        arms = {name: _checked(arm, "an arm") for name, arm in study.get("arms", {}).items()}
        runs = [
            run
            for entry in study.get("runs", [])
            for run in _runs(study.get("config", []), arms, _checked(entry, "an entry of runs"))
        ]
        if "start" in study:
            runs = _from_starts(_checked(study["start"], "the start"), runs)
        _refuse_none_or_twice(runs)
    except yaml.MarkedYAMLError as error:
        raise ValueError(yaml_problem(path, error)) from error
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
            yield StudyRun(
                "_".join(map(str, [name, *values, f"seed{seed}"])),
                _arguments([*shared, *arm.get("config", [])], options, seed),
                seed,
            )


def _from_starts(start: Mapping[str, Any], runs: Sequence[StudyRun]) -> list[StudyRun]:
    """The runs, after their seeds' starts, which all come first so that no job waits for one."""
    if "export" not in start:
        raise ValueError(
            "the start has no 'export'; name the model that the runs begin from, such as "
            "stage-1-routing"
        )
    starts = {seed: _start(start, seed) for seed in dict.fromkeys(run.seed for run in runs)}
    from_them = [replace(run, start=starts[run.seed], export=start["export"]) for run in runs]
    return [*starts.values(), *from_them]


def _start(start: Mapping[str, Any], seed: int) -> StudyRun:
    arguments = _arguments(start.get("config", []), start.get("options", {}), seed)
    return StudyRun(f"start_seed{seed}", arguments, seed)


def _arguments(configs: Sequence[str], options: Mapping[str, Any], seed: int) -> tuple[str, ...]:
    options = {**options, "seed_everything": seed}
    flags = (part for key, value in options.items() for part in _flags(key, [value]))
    return ("fit", *_flags("config", configs), *flags)


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
        ended: dict[StudyRun, Future[int]] = {}
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                for run in waiting:  # starts come before the runs that wait for them
                    start = None if run.start is None else ended.get(run.start)
                    ended[run] = pool.submit(self._one, run, start)
                return [run.name for run, future in ended.items() if future.result()]
            except BaseException:
                self._stop()
                raise

    def is_finished(self, run: StudyRun) -> bool:
        """Whether the run has already finished with the same command."""
        file = self.folder / run.name / FINISHED
        if not file.exists():
            return False
        if json.loads(file.read_text("utf-8")) != run.record():
            raise ValueError(
                f"{file.parent} was made by another command than the study's: choose another "
                "--folder, or delete it"
            )
        return True

    def log(self, name: str) -> Path:
        """The file with the output of the run's process."""
        return self.folder / "logs" / f"{name}.log"

    def _one(self, run: StudyRun, start: Future[int] | None) -> int:
        if (start is not None and start.result()) or self._stopping:
            return 1
        if run.start is not None and not run.model(self.folder).is_dir():
            sys.stdout.write(f"{run.name}: not started, {run.model(self.folder)} does not exist\n")
            return 1
        log = self.log(run.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            process = subprocess.Popen(run.command(self.folder), stdout=stream, stderr=stream)
            self._processes.append(process)
            code = process.wait()
        if code == 0:
            write_json_atomically(self.folder / run.name / FINISHED, run.record())
        ended = "stopped" if self._stopping else f"failed, see {log}"
        sys.stdout.write(f"{run.name}: {'finished' if code == 0 else ended}\n")
        sys.stdout.flush()
        return code

    def _stop(self) -> None:
        """Ask running processes to save and end."""
        self._stopping = True
        for process in self._processes:
            if process.poll() is None:
                process.terminate()


def slurm_script(study: Path, folder: Path, runs: Sequence[StudyRun], jobs: int) -> str:
    """A job array with one run each; ``study.py`` on the same folder then writes the report.

    With a start, a script for bash that submits two arrays: the starts, and the runs after them.
    """
    shared = ["python", "study.py", str(study), "--folder", str(folder)]
    first_ones = {run.start for run in runs}
    starts, others = (
        [shlex.join([*shared, "--only", run.name]) for run in runs if (run in first_ones) is first]
        for first in (True, False)
    )
    if not starts:
        return _job_array(study.stem, others, jobs)
    first = _job_array(f"{study.stem}-start", starts, jobs)
    then = _job_array(study.stem, others, jobs)
    return (
        "#!/bin/bash\n"
        "# Run this with bash: it submits two job arrays; the second waits for the first.\n"
        f"first=$(sbatch --parsable <<'SCRIPT'\n{first}SCRIPT\n)\n"
        f"sbatch --dependency=\"afterok:${{first%%;*}}\" <<'SCRIPT'\n{then}SCRIPT\n"
    )


def _job_array(name: str, commands: Sequence[str], jobs: int) -> str:
    return "\n".join(
        [
            "#!/bin/bash",
            f"#SBATCH --job-name={name}",
            f"#SBATCH --array=0-{len(commands) - 1}%{jobs}",
            "#SBATCH --requeue",
            "runs=(",
            *(f"  {shlex.quote(command)}" for command in commands),
            ")",
            'eval "${runs[$SLURM_ARRAY_TASK_ID]}"',
            "",
        ]
    )
