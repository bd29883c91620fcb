"""The ``vllm`` engine: completions from a ``vllm serve`` that follows the training weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from sdft.rollout.request import RolloutRequest, SamplingSettings
from sdft.rollout.sampling import rollout_of
from sdft.rollout.vllm_server import VLLMError, VLLMServer
from sdft.rollout.weight_transfer import ServedWeights, SharedFolder
from sdft.types import Rollout, TokenIds

FIRST_VERSION, LAST_VERSION = (0, 32), (0, 33)  # whose HTTP interface this was written against
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LOGPROBS_MODE = "processed_logprobs"  # of the distribution that was sampled from


class VLLMEngine:
    """Sample on a vLLM server, which is given the weights whenever they changed.

    The server runs in an environment of its own; docs/engines.md has its start command. Each
    prompt is a request with a seed of its own. Log-probabilities are the server's: its kernels
    round otherwise than the trainer's, so they are near to the student's, not equal. Drafts are
    not used.

    Where the student is sharded (FSDP2), all processes use one server, and the first sends it the
    weights.

    Args:
        sync_dir: Folder that trainer and server see under the same path; weights pass through it.
        url: The server's address. Each process that holds all weights needs a server and a folder
            of its own:
            {local_rank} in either stands for the process's number on its machine, as in
            http://127.0.0.1:800{local_rank}.
        model: Name of the served model; null for the only one.
        timeout_s: Longest wait for an answer, a completion or a weight update, in seconds.
        retries: Further attempts after one that failed, before the run ends.
        num_parallel: Requests in flight at a time.
        dtype: What weights are sent in, and the server was started with: bfloat16 or float32. The
            student in bfloat16 is not quite the student: ``importance_clip`` corrects for it.
        sleep: Let the server give its GPU memory back between rollouts, for a GPU shared with
            training; needs a server with --enable-sleep-mode.

    Raises:
        ValueError: A value is out of range, or the server is not the one described.
        VLLMError: The server does not answer.
    """

    def __init__(
        self,
        sync_dir: str,
        url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 3,
        num_parallel: int = 64,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        sleep: bool = False,
    ) -> None:
        sync_dir, url = (of_this_process(each) for each in (sync_dir, url))
        checks = {
            "sync_dir": (sync_dir, Path(sync_dir).is_absolute(), "an absolute path"),
            "timeout_s": (timeout_s, timeout_s > 0, "above 0"),
            "retries": (retries, retries >= 0, "0 or more"),
            "num_parallel": (num_parallel, num_parallel >= 1, "1 or more"),
            "dtype": (dtype, dtype in DTYPES, " or ".join(DTYPES)),
        }
        for name, (value, holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{name} is {value}; it must be {expected}")
        self._server = VLLMServer(url, timeout_s, retries)
        check_version(self._server)
        check_started_with(self._server, "logprobs_mode", LOGPROBS_MODE)
        check_started_with(self._server, "dtype", dtype)
        self._model = served_model(self._server, model)
        self._weights = ServedWeights(
            self._server, SharedFolder(self._server, Path(sync_dir)), DTYPES[dtype]
        )
        self._num_parallel = num_parallel
        self._is_prepared = False
        self._sleep = sleep

    def __call__(self, model: PreTrainedModel, request: RolloutRequest) -> Rollout:
        """B completions in the order of the prompts; see :func:`sdft.rollout.in_place.sample`."""
        sampling = sampling_request(request.settings, request.end_ids)
        common = {"model": self._model, **sampling}
        seeds = request.seeds or [0] * len(request.prompts)
        posts = [
            {**common, "prompt": list(prompt), "seed": seed}
            for prompt, seed in zip(request.prompts, seeds, strict=True)
        ]
        with self.prepared(model), ThreadPoolExecutor(self._num_parallel) as pool:
            answers = list(pool.map(self._complete, posts))
        return rollout_of(answers, request)

    @contextmanager
    def prepared(self, model: PreTrainedModel) -> Iterator[None]:
        """Run a block in which the server is awake and has the weights; blocks may be nested."""
        if self._is_prepared:
            yield
            return
        with self._awake(), self._weights.of(model):
            self._is_prepared = True
            try:
                yield
            finally:
                self._is_prepared = False

    def _complete(self, post: dict[str, Any]) -> tuple[TokenIds, list[float]]:
        return read_completion(self._server.post("/v1/completions", post))

    @contextmanager
    def _awake(self) -> Iterator[None]:
        if not self._sleep:
            yield
            return
        self._server.post("/wake_up")
        yield
        self._server.post("/sleep?level=1")  # weights to host memory, cache dropped


def of_this_process(option: str) -> str:
    """The option with the process's number in its place; launchers say it in the environment."""
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return option.replace("{local_rank}", number)


def sampling_request(settings: SamplingSettings, end_ids: frozenset[int]) -> dict[str, Any]:
    """The settings as vLLM names them; complete, since it fills gaps from the model's own."""
    return {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # end_ids alone end a completion
        "stop_token_ids": sorted(end_ids),
        "stop": list(settings.stop_strings),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "logprobs": 1,
        "return_token_ids": True,
    }


def read_completion(answer: Any) -> tuple[TokenIds, list[float]]:
    """Tokens and log-probabilities of a completion.

    Raises:
        VLLMError: They are missing, not as many as each other, or the completion was cut off.
    """
    try:
        (choice,) = answer["choices"]
        tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        complete = len(tokens) == len(logprobs) > 0 and None not in logprobs
        reason = choice["finish_reason"]
    except (KeyError, TypeError, ValueError):
        raise VLLMError(
            f"a completion came without its token ids or log-probabilities: {str(answer)[:300]}"
        ) from None
    if not complete:
        raise VLLMError(f"{len(tokens)} tokens came with other log-probabilities: {logprobs[:20]}")
    if reason not in ("stop", "length"):
        raise VLLMError(f"a completion was given up ({reason}); does another run use the server?")
    return list(tokens), list(logprobs)


def check_version(server: VLLMServer) -> None:
    """Refuse a server whose interface is not known.

    Raises:
        ValueError: Its version is outside of the known range.
    """
    version = str(server.get("/version")["version"])
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers or not FIRST_VERSION <= tuple(map(int, numbers.groups())) <= LAST_VERSION:
        first, last = (".".join(map(str, each)) for each in (FIRST_VERSION, LAST_VERSION))
        raise ValueError(
            f"the server at {server.url} runs vLLM {version}; install {first} to {last} in its "
            "environment"
        )


def check_started_with(server: VLLMServer, option: str, expected: str) -> None:
    """Refuse a server that was started with another option: its answers would mean something else.

    Raises:
        ValueError: It was.
    """
    info = server.get("/server_info?config_format=json")
    found = str(info["vllm_config"]["model_config"][option]).removeprefix("torch.")
    if found != expected:
        raise ValueError(
            f"the server at {server.url} has {option} {found}; start it with "
            f"--{option.replace('_', '-')} {expected}"
        )


def served_model(server: VLLMServer, name: str | None) -> str:
    """The name to ask for.

    Raises:
        ValueError: It is not served, or none was given and several are.
    """
    served = [str(each["id"]) for each in server.get("/v1/models")["data"]]
    if name is None and len(served) == 1:
        return served[0]
    if name not in served:
        raise ValueError(f"model is {name}; the server at {server.url} serves: {', '.join(served)}")
    return name
