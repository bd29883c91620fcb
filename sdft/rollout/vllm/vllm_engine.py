"""The ``vllm`` engine: completions from a vLLM server that is sent the training weights."""

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
from sdft.rollout.vllm.nccl_transfer import NCCLBroadcast, NCCLGroup
from sdft.rollout.vllm.vllm_server import VLLMError, VLLMServer
from sdft.rollout.vllm.weight_transfer import ServedWeights, SharedFolder, Transport
from sdft.types import Rollout, TokenIds

FIRST_VERSION, LAST_VERSION = (0, 32), (0, 33)  # versions whose HTTP interface is known
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
LOGPROBS_MODE = "processed_logprobs"  # of the distribution that was sampled from


class VLLMEngine:
    """Sample on a vLLM server, which is sent the weights whenever they have changed.

    The server runs in a separate environment; docs/engines.md has its start command. Each prompt
    is a request with its own seed. Log-probabilities are the server's: its kernels round
    differently from the trainer's, so they are close to the student's but not equal. Drafts are
    not used.

    If the student is sharded (FSDP2), all processes use one server, and the first process sends
    it the weights.

    Args:
        url: The server's address. Unless the student is sharded, each process needs its own server
            and folder: {local_rank} in either is replaced by the process's number on its machine,
            as in http://127.0.0.1:800{local_rank}.
        transfer: How weights are sent: through a folder, or with vLLM's own weight transfer over
            NCCL, from the trainer's GPU to the server's other GPUs.
        sync_dir: For a transfer through a folder: one that trainer and server can access under the
            same path.
        model: Name of the served model; null if the server has only one.
        timeout_s: Longest wait for an answer, a completion or a weight update, in seconds.
        retries: Number of attempts after the first one fails, before the run ends.
        num_parallel: Number of concurrent requests.
        dtype: Type in which weights are sent and with which the server was started: bfloat16 or
            float32. In bfloat16 the sampling distribution differs slightly from the student's,
            which ``importance_clip`` corrects.
        sleep: Free the server's GPU memory between rollouts, for a GPU shared with training; needs
            a server with --enable-sleep-mode.

    Raises:
        ValueError: A value is out of range, or the server has other options than these.
        VLLMError: The server does not answer.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        transfer: Literal["folder", "nccl"] = "folder",
        sync_dir: str | None = None,
        model: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 3,
        num_parallel: int = 64,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        sleep: bool = False,
    ) -> None:
        checks = {
            "transfer": (transfer, transfer in ("folder", "nccl"), "folder or nccl"),
            "timeout_s": (timeout_s, timeout_s > 0, "above 0"),
            "retries": (retries, retries >= 0, "0 or more"),
            "num_parallel": (num_parallel, num_parallel >= 1, "1 or more"),
            "dtype": (dtype, dtype in DTYPES, " or ".join(DTYPES)),
        }
        for name, (value, holds, expected) in checks.items():
            if not holds:
                raise ValueError(f"{name} is {value}; it must be {expected}")
        check_transfer(transfer, sync_dir, sleep)
        self._server = VLLMServer(of_this_process(url), timeout_s, retries)
        check_version(self._server)
        check_started_with(self._server, "logprobs_mode", LOGPROBS_MODE)
        check_started_with(self._server, "dtype", dtype)
        self._model = served_model(self._server, model)
        transport: Transport
        if sync_dir is None:  # transfer nccl
            transport = NCCLBroadcast(self._server, NCCLGroup)
        else:
            transport = SharedFolder(self._server, Path(of_this_process(sync_dir)))
        self._weights = ServedWeights(self._server, transport, DTYPES[dtype])
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
        """Run a block in which the server is awake and has the weights; blocks can be nested."""
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
    """Replace {local_rank} with the process's number, which launchers set in the environment."""
    number = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return option.replace("{local_rank}", number)


def check_transfer(transfer: str, sync_dir: str | None, sleep: bool) -> None:
    """Require options that fit each other, and a CUDA device for NCCL.

    Raises:
        ValueError: They do not, or there is none.
    """
    if transfer == "folder":
        if sync_dir is None or not Path(sync_dir).is_absolute():
            raise ValueError(f"sync_dir is {sync_dir}; transfer folder needs an absolute path")
    elif sync_dir is not None:
        raise ValueError(f"sync_dir is {sync_dir}; transfer nccl needs no folder: leave it out")
    elif sleep:
        raise ValueError(
            "sleep is true, for a GPU shared with training, to which NCCL cannot send; use "
            "transfer folder"
        )
    elif not NCCLGroup.is_available():
        raise ValueError("transfer nccl needs a CUDA device for training; use transfer folder")


def sampling_request(settings: SamplingSettings, end_ids: frozenset[int]) -> dict[str, Any]:
    """The settings under vLLM's names; all are set, since vLLM has the model's own as defaults."""
    return {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,  # only end_ids end a completion
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
        VLLMError: They are missing, their numbers differ, or the completion was aborted.
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
    """Require a server version whose interface is known.

    Raises:
        ValueError: The version is outside the known range.
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
    """Require that the server was started with a given option, on which its answers depend.

    Raises:
        ValueError: The server has another value of the option.
    """
    info = server.get("/server_info?config_format=json")
    found = str(info["vllm_config"]["model_config"][option]).removeprefix("torch.")
    if found != expected:
        raise ValueError(
            f"the server at {server.url} has {option} {found}; start it with "
            f"--{option.replace('_', '-')} {expected}"
        )


def served_model(server: VLLMServer, name: str | None) -> str:
    """The name of the model to request.

    Raises:
        ValueError: The model is not served, or no name was given and several models are served.
    """
    served = [str(each["id"]) for each in server.get("/v1/models")["data"]]
    if name is None and len(served) == 1:
        return served[0]
    if name not in served:
        raise ValueError(f"model is {name}; the server at {server.url} serves: {', '.join(served)}")
    return name
