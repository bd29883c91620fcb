"""Write files atomically: a reader sees the old version or the new one, never a partial one.

The new content is written to a temporary file beside the target, so that both are on the same file
system. It is flushed to disk and then renamed to the target in one step.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

TEMPORARY = ".tmp"
"""Suffix of the names of all temporary files and folders; they begin with a dot."""


@contextmanager
def atomic_stream(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose content replaces ``path`` when the block ends without an error.

    Args:
        path: The file to create or replace; its parent directories are created.

    Raises:
        OSError: The file could not be written. What was there before is unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
    try:
        # "x" respects the umask, as a plain open does; the tempfile module would make it 0600.
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_directory(target.parent)


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically, creating its parent directories.

    Args:
        path: The file to create or replace.
        content: All of its bytes.

    Raises:
        OSError: The file could not be written. What was there before is unchanged.
    """
    with atomic_stream(path) as stream:
        stream.write(content)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically; line ends are not changed."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON, atomically.

    Args:
        path: The file to create or replace.
        value: Any JSON value. Use ``None``, not NaN, for what was not measured.

    Raises:
        ValueError: The value contains NaN or an infinity, which JSON cannot express.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write None for what was not measured") from error
    write_text_atomically(path, text + "\n")


def _flush_directory(directory: Path) -> None:
    """Flush a directory, so that a rename survives a power cut, if the system supports it."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def follow_umask(directory: Path) -> None:
    """Give every file below a directory the permissions that the umask allows.

    The safetensors library makes its files readable only by their owner, whatever the umask is, so
    a server that runs as another user could not read them.
    """
    probe = directory / TEMPORARY
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def flush_tree(directory: Path) -> None:
    """Flush every file below a directory to disk, so that the directory can be renamed."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    _flush_directory(directory)


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files of interrupted writes in a directory and its direct subfolders."""
    for pattern in (f".*{TEMPORARY}", f"*/.*{TEMPORARY}"):
        for path in directory.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def save_on_any_rank(model: PreTrainedModel, directory: Path) -> None:
    """Write a model's configuration and weights in transformers' format, on any rank.

    ``save_pretrained`` silently writes nothing on ranks other than the first, but a shared cache is
    written by whichever process needs it first.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    weights: dict[int, tuple[str, Tensor]] = {}  # tied ones once, under their first name
    for name, tensor in model.state_dict().items():
        weights.setdefault(tensor.data_ptr(), (name, tensor.contiguous()))
    save_file(dict(weights.values()), directory / "model.safetensors", metadata={"format": "pt"})
