"""Keeping a vLLM server's weights those of the model in training."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from sdft.model.exported_weights import plain_weights
from sdft.model.lora import trained_parameters
from sdft.model.pretrained import staged_directory
from sdft.model.sharding import from_all_ranks, is_sharded
from sdft.rollout.vllm_server import VLLMError, VLLMServer

T = TypeVar("T")
Transport = Callable[[dict[str, Tensor]], None]  # puts the weights into the paused server


class SharedFolder:
    """Weights by way of a folder: written here, read by every worker of the server.

    Needs nothing of vLLM on this side, so that the two environments may hold different versions
    of everything.

    Args:
        server: Where the weights are to go.
        folder: Seen by both sides under the same path.
    """

    def __init__(self, server: VLLMServer, folder: Path) -> None:
        self._server = server
        self._folder = folder

    def __call__(self, weights: dict[str, Tensor]) -> None:
        """Write the weights, let the server load them, delete them.

        Raises:
            VLLMError: The server does not take them.
        """
        directory = self._folder / "weights"
        with staged_directory(directory) as staging:
            save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
        load = {"weights_path": str(directory), "is_checkpoint_format": True}
        self._server.post("/collective_rpc", {"method": "reload_weights", "kwargs": load})
        rmtree(directory)


class ServedWeights:
    """Which weights a server has, and how to give it newer ones.

    The server keeps the label of the weights it was given last; a restarted server, or one that
    another trainer writes to, is found out by it. Where the model is sharded, the ranks gather one
    tensor after another, and the first rank, which keeps them, gives them to the server that all
    ranks use.

    Args:
        server: The server.
        transport: Puts weights into it.
        dtype: What they are sent in.
    """

    def __init__(self, server: VLLMServer, transport: Transport, dtype: torch.dtype) -> None:
        self._server = server
        self._transport = transport
        self._dtype = dtype
        self._run = secrets.token_hex(4)
        self._pushes = count(1)
        self._label = ""
        self._fingerprint: tuple[float, ...] = ()

    @contextmanager
    def of(self, model: PreTrainedModel) -> Iterator[None]:
        """Run a block in which the server has the model's weights.

        Entering is a collective where the model is sharded.

        Raises:
            VLLMError: The server came by other weights meanwhile, or ranks use several servers.
        """
        together = is_sharded(model)
        if together and len(urls := set(from_all_ranks(self._server.url))) > 1:
            raise VLLMError(
                f"the student is sharded, and its ranks use several servers ({', '.join(urls)}): "
                "give them one, without {local_rank} in url"
            )
        current = fingerprint(model)
        changed = current != self._fingerprint
        if _by_one_rank(lambda: changed or self._served() != self._label, together):
            self._fingerprint = ()
            first = not together or distributed.get_rank() == 0
            weights = plain_weights(model, self._dtype, keep=first)
            self._label = _by_one_rank(lambda: self._push(model, weights), together)
            self._fingerprint = current
        yield
        if self._served() != self._label:
            raise VLLMError(
                f"the weights of {self._server.url} changed during a rollout: it restarted, or "
                "another run uses it; give each run a server of its own and resume"
            )

    def _push(self, model: PreTrainedModel, weights: dict[str, Tensor]) -> str:
        """Replace the server's weights; after a failure it stays paused rather than half new."""
        named = {**weights, **_under_other_names(model, weights)}
        self._server.post("/pause?mode=abort")
        self._transport(revert_weight_conversion(model, named))
        self._server.post("/reset_prefix_cache")
        label = f"{self._run}-{next(self._pushes)}"
        self._server.post("/update_weight_version", {"new_version": label})
        self._server.post("/resume")
        return label

    def _served(self) -> str:
        return str(self._server.get("/weight_info")["weight_version"])


def _under_other_names(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights under the names that :func:`plain_weights` leaves out.

    A server whose own copy of the model is not tied keeps its old head without them, and says
    nothing.
    """
    first: dict[int, str] = {}
    names = [(id(each), name) for name, each in model.named_parameters(remove_duplicate=False)]
    for identity, name in names:
        first.setdefault(identity, name)
    return {
        name: weights[first[identity]].clone()
        for identity, name in names
        if name != first[identity] and first[identity] in weights
    }


def _by_one_rank(work: Callable[[], T], together: bool) -> T:
    """What the first rank's work returns, on every rank, or the error it ends with.

    Args:
        work: Asks the server; done by every rank for itself where they do not act together.
        together: Whether all ranks call this.
    """
    if not together:
        return work()
    outcome: tuple[T | None, str | None] = (None, None)
    if distributed.get_rank() == 0:
        try:
            outcome = (work(), None)
        except VLLMError as error:
            outcome = (None, str(error))
    result, complaint = from_all_ranks(outcome)[0]
    if complaint is not None:
        raise VLLMError(complaint)
    return cast(T, result)


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> tuple[float, ...]:
    """Sum and sum of squares of every trained tensor, which every optimizer step changes.

    They are read off the values: version counters miss writes through ``.data``. A collective
    where the model is sharded.
    """
    weights = [
        each.to_local() if isinstance(each, DTensor) else each for each in trained_parameters(model)
    ]
    sums = [each.sum(dtype=torch.float64) for each in weights]
    norms = [torch.linalg.vector_norm(each, dtype=torch.float64) ** 2 for each in weights]
    if not weights:
        return (float(id(model)),)
    values = torch.stack([*sums, *norms])
    if is_sharded(model):
        distributed.all_reduce(values)
    found: list[float] = values.tolist()
    return (float(id(model)), *found)
