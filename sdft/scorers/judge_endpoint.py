"""Asks a chat endpoint one question, with retries, and caches its verdicts.

The key is sent in one header only.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_REPLY_TOKENS = 4096
"""Longest reply: room for a judge that reasons before its verdict."""

FIRST_WAIT_S = 0.5  # before the first retry; doubles with each
WORTH_A_RETRY = frozenset({408, 409, 429})  # besides server errors


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key must not follow it to another host."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""
        return


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint.

    Args:
        url: Its base URL, such as http://127.0.0.1:8000/v1.
        model: The model's name there.
        api_key: Sent as a bearer token; None sends none. Never shown.
        num_attempts: Number of requests before giving up.
        timeout_s: Longest wait for a reply, in seconds.
    """

    url: str
    model: str
    api_key: str | None = field(repr=False)
    num_attempts: int
    timeout_s: float

    def reply(self, text: str) -> str:
        """The greedy reply to one user message.

        Raises:
            RuntimeError: No reply after all attempts, or the request is refused.
        """
        request = self._request(text)
        failure = ""
        for attempt in range(self.num_attempts):
            if attempt:
                time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                opener = urllib.request.build_opener(_NoRedirect)
                with opener.open(request, timeout=self.timeout_s) as answer:
                    return _content(answer.read())
            except urllib.error.HTTPError as error:
                failure = f"HTTP {error.code}"
                if error.code < 500 and error.code not in WORTH_A_RETRY:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                failure = str(error) or type(error).__name__
        raise RuntimeError(
            f"the model at {self.url} gave no reply ({failure}) in {attempt + 1} attempts; check "
            "its url, its name and the key in its environment variable. Replies so far are kept: "
            "run this again to continue"
        )

    def _request(self, text: str) -> urllib.request.Request:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        address = f"{self.url.rstrip('/')}/chat/completions"
        return urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")


def _content(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError("an answer that is no chat completion") from error


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
