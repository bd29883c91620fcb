"""Keeping a vLLM server's weights those of the model in training."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from shutil import rmtree

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from sdft.model.lora import merged, trained_parameters
from sdft.model.pretrained import staged_directory
from sdft.rollout.vllm_server import VLLMError, VLLMServer
from sdft.runs.files import save_on_any_rank

Transport = Callable[[PreTrainedModel], None]  # puts the weights into the paused server


class SharedFolder:
    """Weights by way of a folder: written here, read by every worker of the server.

    Needs nothing of vLLM on this side, so that the two environments may hold different versions
    of everything. Adapters are folded into the weights.

    Args:
        server: Where the weights are to go.
        folder: Seen by both sides under the same path.
    """

    def __init__(self, server: VLLMServer, folder: Path) -> None:
        self._server = server
        self._folder = folder

    def __call__(self, model: PreTrainedModel) -> None:
        """Write the weights, let the server load them, delete them.

        Raises:
            VLLMError: The weights are in shards, or the server does not take them.
        """
        if any(isinstance(each, FSDPModule) for each in model.modules()):
            raise VLLMError(
                "the student is in shards (FSDP2), and no rank has all of it to send: set "
                "rollout_engine to in_place, or trainer.strategy to ddp"
            )
        directory = self._folder / "weights"
        with staged_directory(directory) as staging:
            save_on_any_rank(merged(model), staging)
        load = {"weights_path": str(directory), "is_checkpoint_format": True}
        self._server.post("/collective_rpc", {"method": "reload_weights", "kwargs": load})
        rmtree(directory)


class ServedWeights:
    """Which weights a server has, and how to give it newer ones.

    The server keeps the label of the weights it was given last; a restarted server, or one that
    another trainer writes to, is found out by it.

    Args:
        server: The server.
        transport: Puts weights into it.
    """

    def __init__(self, server: VLLMServer, transport: Transport) -> None:
        self._server = server
        self._transport = transport
        self._run = secrets.token_hex(4)
        self._pushes = count(1)
        self._label = ""
        self._fingerprint: tuple[float, ...] = ()

    @contextmanager
    def of(self, model: PreTrainedModel) -> Iterator[None]:
        """Run a block in which the server has the model's weights.

        Raises:
            VLLMError: The server came by other weights meanwhile.
        """
        current = fingerprint(model)
        if current != self._fingerprint or self._served() != self._label:
            self._push(model)
            self._fingerprint = current
        yield
        if self._served() != self._label:
            raise VLLMError(
                f"the weights of {self._server.url} changed during a rollout: it restarted, or "
                "another run uses it; give each run a server of its own and resume"
            )

    def _push(self, model: PreTrainedModel) -> None:
        """Replace the server's weights; after a failure it stays paused rather than half new."""
        self._fingerprint = ()
        self._server.post("/pause?mode=abort")
        self._transport(model)
        self._server.post("/reset_prefix_cache")
        self._label = f"{self._run}-{next(self._pushes)}"
        self._server.post("/update_weight_version", {"new_version": self._label})
        self._server.post("/resume")

    def _served(self) -> str:
        return str(self._server.get("/weight_info")["weight_version"])


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> tuple[float, ...]:
    """Sum and norm of every trained tensor, which every optimizer step changes.

    They are read off the values: version counters miss writes through ``.data``.
    """
    weights = trained_parameters(model)
    sums = [each.sum(dtype=torch.float64) for each in weights]
    norms = [torch.linalg.vector_norm(each, dtype=torch.float64) for each in weights]
    values: list[float] = torch.stack([*sums, *norms]).tolist() if weights else []
    return (float(id(model)), *values)
