"""Command line: ``python study.py configs/studies/tool_call.yaml``.

A thin shim over :mod:`command_line.studies` and :mod:`sdft.report`.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from command_line.studies import Runner, StudyRun, read_study, slurm_script
from sdft.report import compare, read_run, write_report


def main(args: list[str] | None = None) -> None:
    """Run a study to its end, or print how to."""
    parser = argparse.ArgumentParser(
        description="Runs a grid of configurations and seeds, and compares the runs. Start it "
        "again after a stop: finished runs are skipped, killed ones resume."
    )
    parser.add_argument("study", type=Path, help="such as configs/studies/tool_call.yaml")
    parser.add_argument("--folder", type=Path, help="of the runs; default: runs/<study>")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--only", help="run the one of this name (after its start), no report")
    parser.add_argument("--print", action="store_true", help="print the commands instead")
    parser.add_argument("--slurm", action="store_true", help="print a job-array script instead")
    options = parser.parse_args(args)
    folder = options.folder or Path("runs") / options.study.stem
    try:
        if options.jobs < 1:
            raise ValueError(f"--jobs is {options.jobs}; it must be at least 1")
        runs = read_study(options.study)
        if options.only is not None:
            asked = [run for run in runs if run.name == options.only]
            runs = [each for run in asked for each in (run.start, run) if each is not None]
            if not runs:
                raise ValueError(f"--only {options.only}: {options.study} has no such run")
        if options.print:
            sys.stdout.writelines(f"{shlex.join(run.command(folder))}\n" for run in runs)
        elif options.slurm:
            sys.stdout.write(slurm_script(options.study, folder, runs, options.jobs))
        else:
            _run(Runner(folder, options.jobs), runs, report=options.only is None)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def _run(runner: Runner, runs: list[StudyRun], *, report: bool) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failed = runner.run(runs)
    except KeyboardInterrupt:
        raise SystemExit("stopped; start the same command again to continue") from None
    starts = {run.start for run in runs}
    finished = [
        runner.folder / run.name for run in runs if run not in starts and runner.is_finished(run)
    ]
    if report and finished:
        page, *_ = write_report(compare(map(read_run, finished)), runner.folder / "report")
        sys.stdout.write(f"{page}\n")
    if failed:
        raise SystemExit(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
