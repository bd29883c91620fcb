"""Lets a training process run one step per request, so that each can be measured.

The measured process calls :meth:`Pace.turn` at the end of every step. That writes one line of JSON
about the time since the last request, and waits for the next request, a line on standard input.
Data loading and logging between two steps are therefore part of a step; waiting is not. Only the
standard library is used, so that a peer's environment can run this too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Pace:
    """Both clocks, and the stream for reports; what libraries print goes to stderr."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._reports = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start()

    def turn(self, **facts: Any) -> None:
        """Report and wait; end the process if the benchmark has ended."""
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
