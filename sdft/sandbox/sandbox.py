"""Runs Python code that a model wrote, where it can do no harm.

The code runs in a process of its own that has locked itself in before it reads the code
(:mod:`sdft.sandbox.jail`). Linux on x86-64 with Landlock version 3 (6.2 and newer) is needed,
but no rights of an administrator; where anything of it is missing, nothing is run.

Promised: no network and no other process, thread or signal, since the kernel refuses every system
call outside of a short list; files are read beneath Python's libraries alone, and written into one
empty folder alone, which is deleted; the environment is empty; time, memory, output, open files and
files written are limited.

Not promised: protection from bugs of the kernel; that the code cannot learn of a file whether it
exists, its size and its times; that checks appended to the code ran honestly, for the code may
change whatever lies in its own process. There are no sub-folders, threads, asyncio or installed
packages.
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
_TICK = 0.01  # seconds between looks at the process and its folder


class SandboxUnavailable(RuntimeError):
    """This system cannot isolate the code, so that it was not run."""


@dataclass(frozen=True)
class SandboxResult:
    """What became of the code.

    Args:
        ok: Whether it ran to its last line; a program that left early, with whatever status, did
            not.
        stdout: What it printed, at most :data:`MAX_FILE_BYTES`.
        stderr: The same of standard error.
        reason: Why it did not run to its end; None if it did.
    """

    ok: bool
    stdout: str
    stderr: str
    reason: str | None


def run_python(code: str, *, seconds: float = 10.0, memory_mb: int = 512) -> SandboxResult:
    """Run code as ``__main__`` of an isolated interpreter with the standard library alone.

    Args:
        code: Any text; what is not Python is an error in the result.
        seconds: Wall-clock time it may take.
        memory_mb: Address space it may use, the interpreter's about 20 MiB among it.

    Raises:
        SandboxUnavailable: This system lacks what isolates the code, so it was not run.
        ValueError: A limit is not usable.
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
    """The process, locked in; it reads the code only then."""
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
    """Wait for the end; why it must be brought about, or None if it came by itself."""
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
