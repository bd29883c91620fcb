"""Read JSON Lines or a JSON list strictly: anything but a valid JSON object is an error.

Every error names the file and the line. JSON Lines are read line by line, and a line over the size
limit is rejected before it is read in full. Files may be compressed with gzip or zstandard.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 64


def read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its place as ``file:line``.

    Lines of only white space are ignored.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is too long, is not UTF-8, or is not one JSON object.
    """
    with opened(path) as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(
                    f"{where}: the line has more than {MAX_LINE_BYTES:,} bytes; "
                    "a row is one line, so check for missing line breaks or shorten the row"
                )
            text = decode_line(line, where, first=number == 1)
            if text.strip():
                yield where, _parse(text, where)


def read_list(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON file that is one list, each with its place as ``file: row n``.

    Raises:
        ValueError: The file is not UTF-8, not a list, or an entry is not a JSON object.
    """
    with opened(path) as stream:
        rows = _parse(decode_line(stream.read(), str(path), first=True), str(path), list)
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__}, not a JSON object; write {{...}}")
        yield where, row


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed if its name ends in ``.gz`` or ``.zst``.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not compressed as its name says, or it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        if path.suffix == ".zst":
            import pyarrow  # imported here because it is slow and few files need it

            with pyarrow.input_stream(str(path), compression="zstd") as compressed:
                yield cast("BinaryIO", io.BufferedReader(compressed))
        elif path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                yield cast("BinaryIO", stream)
        else:
            with path.open("rb") as stream:
                yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}); compress it again") from error
    except OSError as error:
        if "ZSTD" not in str(error):
            raise
        raise ValueError(f"{path}: not a whole zstd file ({error}); compress it again") from error


def decode_line(line: bytes, where: str, *, first: bool) -> str:
    """A line's text, without the byte order mark that a file's first line may begin with.

    Raises:
        ValueError: It is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: not UTF-8 at byte {error.start} of the line; save the file as UTF-8"
        ) from error


def _parse(line: str, where: str, kind: type = dict) -> Any:
    try:
        record = json.loads(line, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(_too_deep(where)) from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: not valid JSON: {error.msg} at character {error.pos}; "
            "write one complete object on the line"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(record, kind):
        raise ValueError(
            f"{where}: a {type(record).__name__}, not a JSON object; write the row as {{...}}"
        )
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} occurs twice in one object")
    return members


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _too_deep(where: str) -> str:
    return f"{where}: nested deeper than {MAX_DEPTH} levels; flatten the value"


def check_json(value: object, where: str) -> None:
    """Check that a value is plain JSON with clean text throughout.

    Args:
        value: Strings, finite numbers, true, false, null, lists and mappings with string keys.
        where: Name of the value in errors, such as ``train.jsonl:3: field 'meta'``.

    Raises:
        ValueError: The value contains another type, a NUL character or half a surrogate pair in a
            text, a number that is not finite, or nesting deeper than :data:`MAX_DEPTH`.
    """
    pending: list[tuple[object, int]] = [(value, 1)]
    while pending:
        item, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(_too_deep(where))
        pending += [(child, depth + 1) for child in _children(item)]
        if isinstance(item, str):
            _check_text(item, where)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{where}: the number {item} is not finite; give another or null")
        elif not isinstance(item, int | float | list | Mapping | None):
            raise ValueError(
                f"{where}: a value of type {type(item).__name__}; "
                "use text, numbers, true, false, null, lists or objects"
            )


def _children(item: object) -> list[object]:
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    return item if isinstance(item, list) else []


def _check_text(text: str, where: str) -> None:
    if "\0" in text:
        raise ValueError(f"{where}: holds a NUL character (\\u0000); remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: holds half a surrogate pair ({error.object[error.start]!r}) "
            f"at character {error.start}; replace it with a whole character"
        ) from error
