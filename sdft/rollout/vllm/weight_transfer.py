"""Send the training weights to a vLLM server when they have changed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Protocol, TypeVar, cast

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
from sdft.rollout.vllm.vllm_server import VLLMError, VLLMServer

T = TypeVar("T")


class Transport(Protocol):
    """Loads weights into the server while it is paused."""

    def connect(self) -> None:
        """Prepare a server that has other weights than this transport sent it last.

        Called before the first :meth:`send`, and again after the server restarted, after another
        run sent it weights, and after a failure.
        """

    def send(self, weights: dict[str, Tensor]) -> None:
        """Replace the server's weights; they are contiguous and in host memory."""


class SharedFolder:
    """Sends weights through a folder: written here, read by every worker of the server.

    This side does not need vLLM, so that the two environments can have different versions of every
    package.

    Args:
        server: The server to send the weights to.
        folder: Folder that both sides can access under the same path.
    """

    def __init__(self, server: VLLMServer, folder: Path) -> None:
        self._server = server
        self._folder = folder

    def connect(self) -> None:
        """Nothing has to be prepared."""

    def send(self, weights: dict[str, Tensor]) -> None:
        """Write the weights, have the server load them, and delete the file.

        Raises:
            VLLMError: The server does not load them.
        """
        directory = self._folder / "weights"
        with staged_directory(directory) as staging:
            save_file(weights, staging / "model.safetensors", metadata={"format": "pt"})
        load = {"weights_path": str(directory), "is_checkpoint_format": True}
        self._server.post("/collective_rpc", {"method": "reload_weights", "kwargs": load})
        rmtree(directory)


class ServedWeights:
    """Tracks which weights a server has, and sends it newer ones.

    The server stores a label of the last weights it was sent. The label shows whether the server
    was restarted or was sent weights by another trainer. If the model is sharded, the ranks gather
    one tensor after another, and the first rank keeps the gathered weights and sends them to the
    server that all ranks use.

    Args:
        server: The server.
        transport: Loads weights into it.
        dtype: Type in which weights are sent.
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

        Entering is a collective if the model is sharded.

        Raises:
            VLLMError: The server's weights changed during the block, or the ranks of a sharded
                model use several servers.
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
            label, self._label, self._fingerprint = self._label, "", ()
            first = not together or distributed.get_rank() == 0
            weights = plain_weights(model, self._dtype, keep=first)
            self._label = _by_one_rank(lambda: self._push(model, weights, label), together)
            self._fingerprint = current
        yield
        if self._served() != self._label:
            raise VLLMError(
                f"the weights of {self._server.url} changed during a rollout: it restarted, or "
                "another run uses it; give each run a server of its own and resume"
            )

    def _push(self, model: PreTrainedModel, weights: dict[str, Tensor], last_label: str) -> str:
        """Replace the server's weights; if this fails, the server stays paused."""
        named = {**weights, **_under_other_names(model, weights)}
        self._server.post("/pause?mode=abort")
        if self._served() != last_label:
            self._transport.connect()
        self._transport.send(revert_weight_conversion(model, named))
        self._server.post("/reset_prefix_cache")
        label = f"{self._run}-{next(self._pushes)}"
        self._server.post("/update_weight_version", {"new_version": label})
        self._server.post("/resume")
        return label

    def _served(self) -> str:
        return str(self._server.get("/weight_info")["weight_version"])


def _under_other_names(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights under the names that :func:`plain_weights` leaves out.

    Without them, a server whose own copy of the model is not tied would silently keep its old head.
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
    """Run some work on the first rank, and return its result or raise its error on every rank.

    Args:
        work: Makes requests to the server.
        together: Whether all ranks call this; if not, this rank does the work itself.
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
    """Sum and sum of squares of every trained tensor, which change with every optimizer step.

    They are computed from the values, because version counters miss writes through ``.data``. This
    is a collective if the model is sharded.
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
