"""Types and readers that converters share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # a row as JSON; ``split`` says which, where the description lists no ids
Files = Mapping[str, Path]  # the description's names of raw files -> where they lie
Converter = Callable[[Files], Iterable[Record]]


def one_turn(text: str) -> list[Record]:
    """The prompt of one user turn."""
    return [{"role": "user", "content": text}]


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            if line.strip():
                yield json.loads(line)


def arrow_rows(path: Path) -> list[Record]:
    """The rows of an Arrow stream, as ``datasets`` saves them to disk."""
    import pyarrow  # slow to import, and two data sets need it

    with pyarrow.memory_map(str(path)) as source:
        rows: list[Record] = pyarrow.ipc.open_stream(source).read_all().to_pylist()
    return rows
