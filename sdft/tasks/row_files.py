"""Reads files of rows in the usual formats, as records with their places.

JSON Lines, JSON lists, CSV, TSV, Parquet, Arrow and folders written by ``save_to_disk``; all but
the last three may be compressed with gzip or zstandard. A place is ``file:line`` where the format
has lines, and ``file: row n`` elsewhere.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from sdft.runs.jsonl import MAX_LINE_BYTES, decode_line, opened, read_list, read_records

TEXTS = ("id", "prompt", "demonstration", "answer", "context")  # text, whatever type a column has
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson", ".json", *DELIMITERS)
SUFFIXES = (
    *(f"{kind}{compression}" for kind in LINES for compression in ("", ".gz", ".zst")),
    ".parquet",
    ".arrow",
    "",  # a folder written by save_to_disk
)

Record = tuple[str, dict[str, Any]]


def split_file(folder: Path, split: str) -> Path | None:
    """The file, or the folder written by ``save_to_disk``, that holds a split; None for none.

    Raises:
        ValueError: There are several.
    """
    found = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").exists()]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder}: {names} are all {split} rows; keep one of them")
    return found[0] if found else None


def is_table(path: Path) -> bool:
    """Whether a file has columns of one type each, rather than JSON objects."""
    return _kind(path) not in (".jsonl", ".ndjson", ".json")


def read_file(path: Path) -> Iterator[Record]:
    """The records of a file, whatever its format.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or is not in the format that its name says.
    """
    kind = _kind(path)
    if kind in DELIMITERS:
        return _read_delimited(path, DELIMITERS[kind])
    if kind == ".json" and _is_list(path):
        return read_list(path)
    return _read_dataset(path, kind) if is_table(path) else read_records(path)


def _kind(path: Path) -> str:
    return Path(path.name.removesuffix(".gz").removesuffix(".zst")).suffix


def _is_list(path: Path) -> bool:
    with opened(path) as stream:
        return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _read_delimited(path: Path, delimiter: str) -> Iterator[Record]:
    """Every cell is text, as it is written; None for an empty one."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with opened(path) as stream:
        lines = (
            decode_line(line, f"{path}:{number}", first=number == 1)
            for number, line in enumerate(stream, start=1)
        )
        first = next(lines, "")
        if delimiter == "," and ";" in first and "," not in first:
            delimiter = ";"  # as spreadsheets write it where numbers have a decimal comma
        rows = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        end = 0
        header: list[str] = []
        try:
            for cells in rows:
                where, end = f"{path}:{end + 1}", rows.line_num
                if not header:
                    header = _header(cells, where)
                elif cells:
                    yield where, _cells(cells, header, where)
        except csv.Error as error:
            raise ValueError(f"{path}:{end + 1}: {error}; check the quotes") from error


def _header(cells: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len({*header}) < len(header):
        raise ValueError(f"{where}: two columns have one name; the header is {', '.join(header)}")
    return header


def _cells(cells: list[str], header: list[str], where: str) -> dict[str, str | None]:
    if len(cells) != len(header):
        raise ValueError(
            f"{where}: {len(cells)} cells under a header of {len(header)} "
            f"({', '.join(header):.200}); put a cell that holds the separator in double quotes"
        )
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _read_dataset(path: Path, kind: str) -> Iterator[Record]:
    from datasets import ClassLabel, Dataset, load_from_disk  # takes seconds

    try:
        if kind == ".parquet":
            dataset = Dataset.from_parquet(str(path), keep_in_memory=True)
        else:
            dataset = Dataset.from_file(str(path)) if kind else load_from_disk(str(path))
        labels = {
            name: feature
            for name, feature in dataset.features.items()
            if isinstance(feature, ClassLabel)
        }
    except Exception as error:  # the library raises many unrelated types
        about = f"{path}: not readable as {kind.lstrip('.') or 'a folder written by save_to_disk'}"
        raise ValueError(f"{about}: {_first_line(error)}") from error
    for number, values in enumerate(dataset, start=1):
        names = {
            name: label.int2str(values[name])
            for name, label in labels.items()
            if values[name] is not None and values[name] >= 0
        }
        yield f"{path}: row {number}", {**values, **names}


def as_fields(record: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """A table's columns as a row's fields: numbers become text where text is needed.

    Any other column goes to ``meta``; an empty cell is left out.
    """
    record = {name: value for name, value in record.items() if value is not None}
    own = {
        name: str(value) if name in TEXTS and _is_number(value) else value
        for name, value in record.items()
        if name in fields
    }
    others = {name: _plain(value) for name, value in record.items() if name not in fields}
    if not others:
        return own
    meta = own.get("meta")
    return {**own, "meta": {**others, **(meta if isinstance(meta, dict) else {})}}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A value that JSON has, or its text."""
    return value if isinstance(value, str | int | float | list | dict) else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
