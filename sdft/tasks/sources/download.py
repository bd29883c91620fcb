"""Downloads files to the disk, and keeps them only if their checksums are right."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from sdft.runs.files import atomic_stream
from sdft.tasks.sources.description import RawFile

MIRROR_VARIABLE = "SDFT_DATA_MIRROR"
_CHUNK = 1 << 16
_TIMEOUT = 60.0  # seconds without a byte


class FetchError(ValueError):
    """A file could not be downloaded, or has a wrong checksum; the message is one line."""


def download(file: RawFile, target: Path) -> None:
    """Download a file, with progress on stderr, unless the target already is that file.

    ``SDFT_DATA_MIRROR`` names an address below which ``HOST/PATH`` of every file lies, for machines
    without internet access.

    Args:
        file: Its address and checksum.
        target: The path to write to.

    Raises:
        FetchError: It could not be downloaded, or its checksum is wrong.
    """
    if target.is_file():
        with target.open("rb") as stream:
            if _digest(file, _chunks(stream), target.stat().st_size) == _expected(file):
                return
    address = mirrored(file.url)
    try:
        with urlopen(Request(address, headers={"User-Agent": "sdft"}), timeout=_TIMEOUT) as answer:
            _store(file, answer, int(answer.headers.get("Content-Length") or 0), target)
    except HTTPError as error:
        raise FetchError(f"{address}: the server says {error.code} {error.reason}") from error
    except (URLError, TimeoutError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise FetchError(
            f"{address}: {reason}; fetch where there is a network (`sdft fetch CONFIG`) and copy "
            f"the cache, or let {MIRROR_VARIABLE} name a mirror"
        ) from error


def mirrored(url: str) -> str:
    """The address to download from: the file's own, or its place on the mirror."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return url
    parts = urlsplit(url)
    return f"{mirror.rstrip('/')}/{parts.netloc}{parts.path}"


def _store(file: RawFile, answer: BinaryIO, size: int, target: Path) -> None:
    label = target.name
    shown = tqdm(total=size or None, unit="B", unit_scale=True, desc=label, file=sys.stderr)
    with shown as bar, atomic_stream(target) as stream:
        for chunk in _chunks(answer):
            stream.write(chunk)
            bar.update(len(chunk))
        stream.flush()
        with open(stream.name, "rb") as written:
            found = _digest(file, _chunks(written), os.fstat(written.fileno()).st_size)
        if found != _expected(file):
            raise FetchError(
                f"{mirrored(file.url)}: its checksum is {found}, and it must be {_expected(file)}: "
                "the file changed, or was cut short"
            )


def _expected(file: RawFile) -> str:
    return file.sha256 or file.git_blob


def _digest(file: RawFile, chunks: Iterator[bytes], size: int) -> str:
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size)
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk
