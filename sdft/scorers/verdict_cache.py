"""A cache of verdicts in an append-only JSON Lines file."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path


def fingerprint(*texts: str) -> str:
    """A key of the texts that were asked about; equal texts have equal keys."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


class VerdictCache:
    """Verdicts by the fingerprint of what was asked.

    Every verdict is one line, written at once, so that processes may share the file; an incomplete
    line, left by a killed process, is skipped.

    Args:
        path: The file, which is created with the first verdict.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        if path.is_file():
            for line in path.read_text("utf-8", errors="replace").splitlines():
                self._read(line)

    def get(self, key: str) -> str | None:
        """The verdict, if there is one."""
        return self._known.get(key)

    def add(self, key: str, verdict: str, reply: str) -> None:
        """Store a verdict with the reply it was read from."""
        line = json.dumps({"key": key, "verdict": verdict, "reply": reply}) + "\n"
        with self._lock:
            self._known[key] = verdict
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                torn = stream.tell() > 0 and not self._ends_a_line()
                stream.write(b"\n" * torn + line.encode())

    def _ends_a_line(self) -> bool:
        with self._path.open("rb") as stream:
            stream.seek(-1, 2)
            return stream.read(1) == b"\n"

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            self._known[str(entry["key"])] = str(entry["verdict"])
        except (ValueError, LookupError, TypeError):
            return
