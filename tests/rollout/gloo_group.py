"""Groups over gloo where there is no GPU for NCCL: the trainer's side, a worker's, and a plugin.

The plugin gives a vLLM server on the CPU such groups. Its environment has torch and vLLM only, so
this file imports nothing of the project, and its text is copied to where the server finds it.
"""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import torch
from torch.distributed import ProcessGroupGloo, TCPStore

HOST, ID_BYTES, WAIT = "127.0.0.1", 128, timedelta(seconds=120)
ENTRY_POINT = "[vllm.general_plugins]\ngloo = gloo_group:replace_nccl\n"


def joined(store: TCPStore, rank: int, num_ranks: int) -> ProcessGroupGloo:
    """Join a group, and reduce one element, as NCCL's communicators do."""
    group = ProcessGroupGloo(store, rank, num_ranks, WAIT)
    group.allreduce([torch.zeros(1)]).wait()
    return group


class GlooGroup:
    """Rank 0, in place of NCCLGroup."""

    def __init__(self) -> None:
        self.store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False, timeout=WAIT)
        self.unique_id = str(self.store.port).encode().ljust(ID_BYTES, b"\0")

    def join(self, num_ranks: int) -> None:
        self.group = joined(self.store, 0, num_ranks)

    def broadcast(self, weight: torch.Tensor) -> None:
        self.group.broadcast(weight, 0).wait()

    @staticmethod
    def is_available() -> bool:
        return True


class WorkerGroup:
    """Another rank, in place of vLLM's PyNcclCommunicator."""

    def __init__(self, unique_id: bytes, rank: int, world_size: int, device: object) -> None:
        store = TCPStore(HOST, int(unique_id.rstrip(b"\0")), is_master=False, timeout=WAIT)
        self.group = joined(store, rank, world_size)

    def broadcast(self, tensor: torch.Tensor, src: int, stream: object = None) -> None:
        self.group.broadcast(tensor, src).wait()

    def destroy(self) -> None:
        del self.group


def replace_nccl() -> None:
    """In the server: workers form gloo groups; the rest of its weight transfer is vLLM's own."""
    from vllm.distributed.weight_transfer import nccl_common

    nccl_common.uid_init_process_group = WorkerGroup
    torch.accelerator.current_device_index = lambda: 0  # both raise without a GPU
    torch.cuda.current_stream = lambda *_: None


def as_plugin(folder: Path) -> Path:
    """Write this file into a folder as an installed package with the plugin."""
    information = folder / "gloo_group-1.dist-info"
    information.mkdir(parents=True)
    shutil.copy(__file__, folder / "gloo_group.py")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: gloo-group\nVersion: 1\n")
    (information / "entry_points.txt").write_text(ENTRY_POINT)
    return folder
