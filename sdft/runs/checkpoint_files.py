"""Write checkpoint files atomically, and verify them before they are read.

``torch.save`` writes a zip archive with a CRC-32 of every record, so every file can be verified;
``torch.load`` itself does not check it.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sdft.runs.files import atomic_stream, write_json_atomically

SHARDED_SUMMARY = "meta.pt"  # everything except the tensors
FIRST_RANKS = (".metadata", SHARDED_SUMMARY)  # the index of the tensors, and the summary
CHUNK = 1 << 24  # bytes read at a time
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # the last.ckpt before the current one


def write_shard_checksums(folder: Path, rank: int, num_ranks: int) -> None:
    """Record the CRC-32 of every file that a rank has written, and flush the files to disk.

    Args:
        folder: The checkpoint, written by all ranks.
        rank: Rank whose files are recorded, in ``checksums-<rank>.json``.
        num_ranks: Number of ranks that wrote the checkpoint.
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
        rank: Rank of this process; it reads the files of every ``num_ranks``-th writer, starting
            from its own number.
        num_ranks: Number of processes that share the reading.
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


class ResumeError(ValueError):
    """A run cannot resume from a checkpoint; the message says why and what to do."""


def write_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint atomically."""
    with atomic_stream(path) as stream:
        torch.save(checkpoint, stream)


def check_whole(path: Path, rank: int = 0, num_ranks: int = 1) -> None:
    """Compare a checkpoint's bytes with the checksums stored in it.

    Args:
        path: The file, or the folder with one file per rank.
        rank: Rank of this process among those that share the reading of a folder.
        num_ranks: Number of these processes; each finds only damage in its own part.

    Raises:
        ResumeError: The file is missing, truncated, corrupted or not a checkpoint. The message
            names a good one in the same folder.
    """
    _refuse(path, _damage(path, rank, num_ranks))


def read_summary(path: Path) -> dict[str, Any]:
    """Load a checkpoint without reading its tensors, which stay in the file until they are used.

    For a folder with one file per rank, only the summary is verified; :func:`check_whole` verifies
    the rest.

    Raises:
        ResumeError: The file is missing, truncated, corrupted or not a checkpoint.
    """
    _refuse(path, _archive_damage(_archive(path)))
    try:
        checkpoint: dict[str, Any] = torch.load(
            _archive(path), map_location="cpu", mmap=True, weights_only=True
        )
        return {**checkpoint, **{name: int(checkpoint[name]) for name in ("epoch", "global_step")}}
    except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ResumeError(
            f"the checkpoint {path} is not a checkpoint of a run ({error}); {_instead(path)}"
        ) from error


def read_counters(path: Path) -> dict[str, int]:
    """Read ``epoch`` and ``global_step`` of a checkpoint.

    Raises:
        ResumeError: The file is missing, truncated, corrupted or not a checkpoint.
    """
    summary = read_summary(path)
    return {name: summary[name] for name in ("epoch", "global_step")}


def _archive(path: Path) -> Path:
    """The file to verify; in a folder with one file per rank, the one with the counters."""
    return path / SHARDED_SUMMARY if path.is_dir() else path


def _refuse(path: Path, damage: str | None) -> None:
    """Raise for a checkpoint that is missing or damaged."""
    if not path.exists():
        raise ResumeError(f"the checkpoint {path} does not exist")
    if damage is not None:
        raise ResumeError(
            f"the checkpoint {path} is truncated or not a checkpoint ({damage}); {_instead(path)}"
        )


def _damage(path: Path, rank: int = 0, num_ranks: int = 1) -> str | None:
    """What is wrong with a checkpoint; None if nothing is."""
    damage = _archive_damage(_archive(path))
    if damage is None and path.is_dir():
        return shard_damage(path, rank, num_ranks)
    return damage


def _archive_damage(path: Path) -> str | None:
    """What is wrong with the archive; None if nothing is."""
    if not path.is_file():
        return "there is no such file"
    state = path.stat()
    return _damage_of_version(path, state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=16)
def _damage_of_version(path: Path, *_: int) -> str | None:
    """The same, cached for each version of a file, since it may read gigabytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (
        OSError,
        RuntimeError,
        EOFError,
        UnicodeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        return str(error)
    return None if damaged is None else f"the record {damaged} fails its checksum"


def _instead(path: Path) -> str:
    """Advice on which checkpoint to resume from: the newest good one in the same folder."""
    others = (other for other in path.parent.glob("*.ckpt") if other.name != path.name)
    good = [other for other in others if _damage(other) is None]
    if not good:
        return "there is no other good one in its folder"
    newest = max(good, key=lambda other: (other.stat().st_mtime_ns, other.name == PREVIOUS))
    name = "previous" if newest.name == PREVIOUS else newest
    return f"the newest good one beside it is {newest}: resume from it with --ckpt_path {name}"
