"""Files that are either the old version or the new one, never half of a new one.

The new content goes to a temporary file beside the target, so that both lie on the same file
system, is flushed to disk, and then takes the target's name in one step.
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
"""How the names of all temporary files and folders end; they begin with a dot."""


@contextmanager
def atomic_stream(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose content takes the place of ``path`` when the block ends without an error.

    Args:
        path: The file to create or replace; its parent directories are created.

    Raises:
        OSError: The file could not be written. What was there before is unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
    try:
        # "x" honours the umask, as a plain open does; the tempfile module would make it 0600.
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
    """Write a file as a whole, creating its parent directories.

    Args:
        path: The file to create or replace.
        content: All of its bytes.

    Raises:
        OSError: The file could not be written. What was there before is unchanged.
    """
    with atomic_stream(path) as stream:
        stream.write(content)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file as a whole; line ends stay as they are in ``text``."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as indented JSON.

    Args:
        path: The file to create or replace.
        value: Anything JSON can hold. What was not measured is ``None``, not NaN.

    Raises:
        ValueError: The value holds NaN or an infinity, which JSON cannot express.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write None for what was not measured") from error
    write_text_atomically(path, text + "\n")


def _flush_directory(directory: Path) -> None:
    """Make a rename survive a power cut, where the system lets a directory be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def follow_umask(directory: Path) -> None:
    """Give every file below a directory the mode of one that is opened plainly.

    The safetensors library makes its files readable by their owner alone, whatever the umask says:
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
    """Put every file below a directory on the disk, so that the directory can be renamed."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    _flush_directory(directory)


def remove_leftovers(directory: Path) -> None:
    """Delete what writes that were killed left in a directory and the directories right below."""
    for pattern in (f".*{TEMPORARY}", f"*/.*{TEMPORARY}"):
        for path in directory.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def save_on_any_rank(model: PreTrainedModel, directory: Path) -> None:
    """Write a model's configuration and weights as transformers reads them.

    ``save_pretrained`` writes nothing on other ranks than the first, without a word; a shared cache
    is written by whichever process comes first.
    """
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    weights: dict[int, tuple[str, Tensor]] = {}  # tied ones once, under their first name
    for name, tensor in model.state_dict().items():
        weights.setdefault(tensor.data_ptr(), (name, tensor.contiguous()))
    save_file(dict(weights.values()), directory / "model.safetensors", metadata={"format": "pt"})
