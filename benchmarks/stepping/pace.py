"""Steps on request: how a training process is measured one step at a time.

The process that is measured calls :meth:`Pace.turn` at the end of every step. That writes one line
of JSON, what has happened since the last request, and waits for the next request, a line on the
standard input. Data loading and logging between two steps are therefore part of a step; waiting
is not. The standard library suffices, so that a peer's environment can run this too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Pace:
    """Both clocks, and the line on which reports go out; what libraries print goes to stderr."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start()

    def turn(self, **facts: Any) -> None:
        """Report and wait; end the process if nobody can ask any more."""
        seconds = {
            "wall_s": time.perf_counter() - self._wall,
            "cpu_s": time.process_time() - self._cpu,
            "peak_mib": peak_resident_mib(),
        }
        print(json.dumps(seconds | facts), file=self._reports, flush=True)
        if not sys.stdin.readline():
            raise SystemExit("the benchmark that asked for steps has ended")
        self._start()

    def _start(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()


def peak_resident_mib() -> float:
    """The most memory this process has held resident since it began, loading included."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")
