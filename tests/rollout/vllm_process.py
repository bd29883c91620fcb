"""A real vLLM server on this machine's CPU, for the tests marked vllm."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

SECONDS_TO_START = 240


class VLLMProcess:
    """``vllm serve`` in a process group of its own, so that all of it can be killed.

    Args:
        command: The vllm program.
        model: Transformers directory.
        log: File for what it prints.
        options: More options of ``vllm serve``.
        plugins: Folder of packages that vLLM loads as plugins.
    """

    def __init__(
        self, command: str, model: Path, log: Path, *options: str, plugins: Path | None = None
    ) -> None:
        self.plugins = plugins
        self.command, self.model, self.log, self.options = command, model, log, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        quiet = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        quiet |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        quiet |= {"OMP_NUM_THREADS": "1"}
        options = ["--host=127.0.0.1", f"--port={self.port}", "--dtype=float32", "--enforce-eager"]
        options += ["--max-model-len=512", "--logprobs-mode=processed_logprobs", *self.options]
        environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
        if self.plugins is not None:
            environment["PYTHONPATH"] = str(self.plugins)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.command, "serve", str(self.model), *options],
                env=environment | quiet,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS_TO_START
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vllm serve did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.5)

    def answers(self) -> bool:
        """Whether it is ready for requests."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """kill -9, workers included."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
