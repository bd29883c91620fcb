"""Send requests to a running ``vllm serve``, with clear errors when they fail."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

FIRST_WAIT_S = 1.0  # before the first retry; doubles with each


class VLLMError(RuntimeError):
    """A request to the server failed; the message says what to do about it."""


class VLLMServer:
    """A client of a vLLM server, over HTTP and JSON; proxies set in the environment are not used.

    A request that can safely be sent twice is tried again if the connection fails, the answer does
    not come in time, or it is a server error.

    Args:
        url: Address, such as http://127.0.0.1:8000.
        timeout_s: Longest wait for an answer, in seconds.
        retries: Number of attempts after the first one fails.
    """

    def __init__(self, url: str, timeout_s: float, retries: int) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._retries = retries
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Any:
        """The decoded answer to a GET request; see :meth:`post` for the errors."""
        return self._ask(urllib.request.Request(self.url + path), 1 + self._retries)

    def post(self, path: str, body: dict[str, Any] | None = None, *, retry: bool = True) -> Any:
        """The decoded answer to a POST request; None if the answer is empty.

        Args:
            path: Path, with the query.
            body: What is sent, as JSON.
            retry: Whether the request can safely be sent twice.

        Raises:
            VLLMError: No answer after all attempts, or the server rejects the request.
        """
        content = json.dumps(body or {}).encode()
        header = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, content, header, method="POST")
        return self._ask(request, 1 + self._retries if retry else 1)

    def _ask(self, request: urllib.request.Request, attempts: int) -> Any:
        for attempt in range(attempts):
            try:
                with self._opener.open(request, timeout=self.timeout_s) as answer:
                    return _decoded(answer.read(), request.full_url)
            except urllib.error.HTTPError as error:
                failure = f"HTTP {error.code}: {error.read().decode(errors='replace')[:500]}"
                if error.code < 500:
                    raise VLLMError(f"{request.full_url}: {failure}{_advice(error.code)}") from None
            except (OSError, http.client.HTTPException) as error:
                failure = _reason(error, self.timeout_s)
            if attempt < attempts - 1:
                time.sleep(FIRST_WAIT_S * 2**attempt)
        raise VLLMError(
            f"{request.full_url}: {failure}, in each of {attempts} attempts; look at the server's "
            "log, or start it as docs/engines.md says"
        )


def _decoded(content: bytes, url: str) -> Any:
    try:
        return json.loads(content) if content.strip() else None
    except ValueError as error:
        raise VLLMError(f"{url}: the answer is no JSON ({error}); is this a vLLM server?") from None


def _reason(error: Exception, timeout_s: float) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {timeout_s:g} s (timeout_s)"
    if isinstance(cause, ConnectionRefusedError):
        return "no server is listening there"
    return f"the connection failed ({cause!r})"


def _advice(code: int) -> str:
    """The most likely remedy for an HTTP error below 500."""
    if code == http.client.NOT_FOUND:
        return "; start the server with VLLM_SERVER_DEV_MODE=1, as docs/engines.md says"
    return ""
