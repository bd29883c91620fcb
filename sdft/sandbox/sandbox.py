"""Run Python code that a model wrote, isolated from the rest of the system.

The code runs in a separate process that isolates itself before it reads the code
(:mod:`sdft.sandbox.jail`). This needs Linux on x86-64 with Landlock version 3 (6.2 and newer), but
no administrator rights. If anything is missing, the code is not run.

Guaranteed: no network and no other process, thread or signal, since the kernel refuses every system
call outside a short list; files can only be read below Python's libraries, and only be written in
one empty folder, which is deleted; the environment is empty; time, memory, output, open files and
files written are limited.

Not guaranteed: protection from kernel bugs; that the code cannot find out whether a file exists,
its size and its times; that checks appended to the code run as written, since the code may change
anything in its own process. There are no subfolders, threads, asyncio or installed packages.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MIN_MEMORY_MB = 64
MAX_FILES = 64
MAX_FILE_BYTES = 4 * 2**20
MAX_OPEN_FILES = 32
_FINISHED = 111  # exit status of code that ran to its end, so that an early exit(0) is not one
_JAIL = Path(__file__).with_name("jail.py")
_TICK = 0.01  # seconds between checks of the process and its folder


class SandboxUnavailable(RuntimeError):
    """This system cannot isolate the code, so it was not run."""


@dataclass(frozen=True)
class SandboxResult:
    """The result of running some code.

    Args:
        ok: Whether it ran to its last line; False if it exited earlier, with any status.
        stdout: Its standard output, at most :data:`MAX_FILE_BYTES`.
        stderr: Its standard error, at most as long.
        reason: Why it did not run to its end; None if it did.
    """

    ok: bool
    stdout: str
    stderr: str
    reason: str | None


def run_python(code: str, *, seconds: float = 10.0, memory_mb: int = 512) -> SandboxResult:
    """Run code as ``__main__`` of an isolated interpreter with only the standard library.

    Args:
        code: Any text; if it is not valid Python, the result contains the error.
        seconds: Limit of wall-clock time.
        memory_mb: Limit of address space in MiB, including about 20 MiB for the interpreter.

    Raises:
        SandboxUnavailable: This system cannot isolate the code, so it was not run.
        ValueError: A limit is out of range.
    """
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds is {seconds}; give a positive number")
    if memory_mb < MIN_MEMORY_MB:
        raise ValueError(f"memory_mb is {memory_mb}; give {MIN_MEMORY_MB} or more")
    if sys.platform != "linux":
        raise SandboxUnavailable(_refusal(f"this is {sys.platform}, not Linux"))
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        source.write(code.encode("utf-8", "surrogatepass"))
        source.seek(0)
        limits = _limits(seconds, memory_mb)
        process = _start(folder, (source, stdout, stderr), limits)
        try:
            reason = _watch(process, Path(folder), seconds)
        finally:
            process.kill()
            process.wait()
        printed, errors = _text(stdout), _text(stderr)
    if reason is None and process.returncode != _FINISHED:
        reason = _reason(process.returncode, errors)
    return SandboxResult(reason is None, printed, errors, reason)


def _limits(seconds: float, memory_mb: int) -> str:
    return json.dumps(
        {
            "RLIMIT_AS": memory_mb * 2**20,
            "RLIMIT_CPU": math.ceil(seconds) + 1,
            "RLIMIT_FSIZE": MAX_FILE_BYTES,
            "RLIMIT_NOFILE": MAX_OPEN_FILES,
            "RLIMIT_NPROC": 0,
            "RLIMIT_CORE": 0,
        }
    )


def _start(
    folder: str, streams: tuple[IO[bytes], IO[bytes], IO[bytes]], limits: str
) -> subprocess.Popen[bytes]:
    """Start the process and wait until it is isolated; it reads the code only then."""
    reader, writer = os.pipe()
    arguments = (folder, limits, str(writer), str(_FINISHED))
    with open(reader, "rb") as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", _JAIL, *arguments],
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                cwd=folder,
                env={},
                pass_fds=[writer],
                start_new_session=True,
            )
        finally:
            os.close(writer)
        answer = report.read().decode()
    if answer != limits:
        process.kill()
        process.wait()
        raise SandboxUnavailable(_refusal(answer or _text(streams[2])))
    return process


def _refusal(what: str) -> str:
    return (
        f"code written by a model is not run, for it cannot be isolated here: {what.strip()}\n"
        "It needs Linux 6.2 or newer on x86-64 with Landlock and seccomp, and a container that "
        "allows both"
    )


def _watch(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> str | None:
    """Wait for the process to end; return why it must be killed, or None if it ended by itself."""
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > deadline:
            return f"ran longer than {seconds:g} seconds"
        if len(os.listdir(folder)) > MAX_FILES:
            return f"wrote more than {MAX_FILES} files"
        time.sleep(_TICK)
    return None


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(MAX_FILE_BYTES).decode("utf-8", "replace")


def _reason(status: int, errors: str) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    last = errors.rstrip().rpartition("\n")[2]
    return f"left with status {status} before its end" + (f": {last:.200}" if last else "")
