"""Checksums of a checkpoint folder with one file per rank, which the format itself lacks."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

from sdft.files import write_json_atomically

SHARDED_SUMMARY = "meta.pt"  # all but the tensors
FIRST_RANKS = (".metadata", SHARDED_SUMMARY)  # the index of the tensors, and the summary
CHUNK = 1 << 24  # bytes read at a time


def write_shard_checksums(folder: Path, rank: int, num_ranks: int) -> None:
    """Note the CRC-32 of every file that a rank has written, and put the files on the disk.

    Args:
        folder: The checkpoint, written by all ranks.
        rank: Whose files are noted, in ``checksums-<rank>.json``.
        num_ranks: How many ranks wrote it.
    """
    own = sorted(folder.glob(f"__{rank}_*"))
    if rank == 0:
        own += [folder / name for name in FIRST_RANKS]
    checksums = {path.name: _checksum(path, flush=True) for path in own}
    write_json_atomically(_list(folder, rank), {"num_ranks": num_ranks, "crc32": checksums})


def shard_damage(folder: Path, rank: int = 0, num_ranks: int = 1) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is.

    Args:
        folder: The checkpoint.
        rank: Of the processes that share the reading; it looks at the files of every
            ``num_ranks``-th writer, from its own number on.
        num_ranks: How many processes share the reading.
    """
    try:
        writers = json.loads(_list(folder, 0).read_bytes())["num_ranks"]
        for writer in range(rank % num_ranks, writers, num_ranks):
            noted = json.loads(_list(folder, writer).read_bytes())["crc32"]
            for name, checksum in noted.items():
                if _checksum(folder / name) != checksum:
                    return f"{name} fails its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    return None


def _list(folder: Path, rank: int) -> Path:
    return folder / f"checksums-{rank}.json"


def _checksum(path: Path, *, flush: bool = False) -> int:
    checksum = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
        if flush:
            os.fsync(stream.fileno())
    return checksum
