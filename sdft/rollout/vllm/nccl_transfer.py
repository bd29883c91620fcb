"""Send the training weights to a vLLM server through its own weight transfer, over NCCL."""

from __future__ import annotations

import base64
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol

import torch
import torch.cuda.nccl
from torch import Tensor

from sdft.rollout.vllm.vllm_server import VLLMError, VLLMServer

cuda: Any = torch.cuda  # some of its functions have no types
START_OPTION = '--weight-transfer-config \'{"backend": "nccl"}\''


class Group(Protocol):
    """Rank 0 of a new group, which the server's workers join with the same 128 bytes."""

    unique_id: bytes

    def join(self, num_ranks: int) -> None:
        """Wait until all ranks have joined, then reduce one element, as vLLM's workers do."""

    def broadcast(self, weight: Tensor) -> None:
        """Send a contiguous tensor in host memory to all workers; returns when it was sent."""

    @staticmethod
    def is_available() -> bool:
        """Whether this process can form such a group."""


class NCCLGroup:
    """A group over ``torch.cuda.nccl``, from this process's current CUDA device.

    Not tested on a GPU. torch keeps the communicator of a group that is no longer used.

    Raises:
        VLLMError: In ``join``, if NCCL refuses the group.
    """

    def __init__(self) -> None:
        self._device = cuda.current_device()  # of the calling thread; others start at 0
        self._stream = cuda.Stream(self._device)
        self._communicator: Any = None
        self.unique_id: bytes = cuda.nccl.unique_id()

    def join(self, num_ranks: int) -> None:
        """Initialize the communicator, and reduce one element."""
        with cuda.device(self._device), cuda.stream(self._stream):
            try:
                self._communicator = cuda.nccl.init_rank(num_ranks, self.unique_id, 0)
            except RuntimeError as error:
                version = ".".join(map(str, cuda.nccl.version()))
                raise VLLMError(
                    f"NCCL {version} cannot join the server's workers ({error}); they need the "
                    "same version of NCCL, and GPUs other than this one"
                ) from error
            one = torch.zeros(1, device=self._device)
            cuda.nccl.all_reduce([one], streams=[self._stream], comms=[self._communicator])
            self._stream.synchronize()

    def broadcast(self, weight: Tensor) -> None:
        """Copy a weight to the device and send it; the copy is freed before the next one."""
        with cuda.device(self._device), cuda.stream(self._stream):
            copy = weight.to(torch.device("cuda", self._device))
            cuda.nccl.broadcast([copy], streams=[self._stream], comms=[self._communicator])
            self._stream.synchronize()

    @staticmethod
    def is_available() -> bool:
        """Whether there is a CUDA device."""
        return torch.cuda.is_available()


class NCCLBroadcast:
    """Sends weights from this process's GPU to those of the server's workers.

    This side does not need vLLM. Its part of a group and the server's must run at the same time,
    so each runs in a thread. If one fails, the error is raised at once and the group is given up,
    but a call inside NCCL cannot be interrupted: its thread stays, and where the server dies in the
    middle of a broadcast, so does a kernel on the GPU, until this process ends.

    Args:
        server: The server to send the weights to.
        new_group: Makes rank 0 of a new group.

    Raises:
        ValueError: The server was started without this weight transfer.
    """

    def __init__(self, server: VLLMServer, new_group: Callable[[], Group]) -> None:
        self._server = server
        self._new_group = new_group
        info = server.get("/server_info?config_format=json")["vllm_config"]
        backend = (info.get("weight_transfer_config") or {}).get("backend")
        if backend != "nccl":
            raise ValueError(
                f"the server at {server.url} has weight transfer {backend}; start it with "
                f"{START_OPTION}"
            )

    def connect(self) -> None:
        """Form a group with the workers; a group that they had before is released.

        Raises:
            VLLMError: The server or this process cannot form it.
        """
        self._post("/shutdown_weight_transfer_engine")
        num_ranks = 1 + int(self._server.get("/get_world_size")["world_size"])
        group = self._new_group()
        init_info = {
            "rank_offset": 1,
            "world_size": num_ranks,
            "nccl_unique_id_b64": base64.b64encode(group.unique_id).decode(),
            "packed": False,
        }
        self._beside(
            "/init_weight_transfer_engine",
            {"init_info": init_info},
            lambda: group.join(num_ranks),
        )
        self._group = group

    def send(self, weights: dict[str, Tensor]) -> None:
        """Broadcast the weights one after another, and have the workers load them.

        Raises:
            VLLMError: A side fails; the server's weights are then a mixture of old and new ones,
                and the group must be formed again.
        """
        group = self._group

        def broadcast_all() -> None:
            for weight in weights.values():
                group.broadcast(weight.contiguous())

        update_info = {
            "names": list(weights),
            "dtype_names": [str(each.dtype).removeprefix("torch.") for each in weights.values()],
            "shapes": [list(each.shape) for each in weights.values()],
        }
        self._post("/start_weight_update")
        self._beside("/update_weights", {"update_info": update_info}, broadcast_all)
        self._post("/finish_weight_update")

    def _post(self, path: str, body: dict[str, Any] | None = None) -> None:
        self._server.post(path, body, retry=False)  # each changes what the next one does

    def _beside(self, path: str, body: dict[str, Any], work: Callable[[], None]) -> None:
        """Make a request and do this side's part at the same time, each in a thread.

        The threads are daemons: one that is blocked does not keep the process alive.

        Raises:
            VLLMError: The first of them to fail, or this side's part does not end in time.
        """
        outcomes: SimpleQueue[Exception | None] = SimpleQueue()
        for task in (lambda: self._post(path, body), work):
            Thread(target=_report, args=(task, outcomes), daemon=True).start()
        for _ in range(2):
            try:
                # A request may take timeout_s to connect, and as long to be answered.
                error = outcomes.get(timeout=2 * self._server.timeout_s + 1)
            except Empty:
                raise VLLMError(
                    f"{self._server.url}{path}: the server is done, but weights are still being "
                    "sent to it; restart it and resume"
                ) from None
            if isinstance(error, VLLMError):
                raise error
            if error is not None:
                raise VLLMError(
                    f"{self._server.url}{path}: sending to the server's workers failed ({error}); "
                    "look at the server's log too, restart it and resume"
                ) from error


def _report(task: Callable[[], None], outcomes: SimpleQueue[Exception | None]) -> None:
    try:
        task()
        outcomes.put(None)
    except Exception as error:
        outcomes.put(error)
