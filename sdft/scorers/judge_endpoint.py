"""Asks a chat endpoint one question, with retries; the key is sent in one header only."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
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
