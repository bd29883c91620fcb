"""Fetches, checks and converts public data sets once; later runs read them from the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from sdft.model.pretrained import cache_directory
from sdft.runs.files import write_json_atomically, write_text_atomically
from sdft.tasks.sources import (
    public_biographies,
    public_intents,
    public_medicine,
    public_science,
    public_suites,
    public_tools,
)
from sdft.tasks.sources.description import Description, read_description, shipped_rows
from sdft.tasks.sources.download import FetchError, download
from sdft.tasks.sources.records import Converter, Record

CONVERTERS: Mapping[str, Converter] = {
    function.__name__: function
    for function in (
        public_biographies.biographies,
        public_intents.banking77,
        public_intents.clinc_domain,
        public_intents.snips_json,
        public_medicine.huatuo,
        public_medicine.pubmedqa,
        public_science.chemistry,
        public_science.chemistry_authors,
        public_science.gsm8k,
        public_suites.suite_arc_easy,
        public_suites.suite_hellaswag,
        public_suites.suite_mmlu,
        public_suites.suite_truthfulqa_mc1,
        public_suites.suite_winogrande,
        public_tools.bfcl,
        public_tools.tool_alpaca,
        public_tools.tool_alpaca_authors,
    )
}
RECORD = "source.json"


def fetched(source: str) -> Path:
    """The folder with a public data set's rows, which are fetched first if they are not there.

    Args:
        source: The name of a description that comes with the package, or the path of one.

    Raises:
        ValueError: There is no such description, or it is not usable.
        FetchError: A file could not be downloaded, or files or rows have a wrong checksum.
    """
    if shipped := shipped_rows(source):
        return shipped
    description = read_description(source)
    folder = cache_directory() / "data" / f"{description.name}-{_version(description)}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / RECORD).is_file():
            _fetch(description, folder)
    return folder


def _fetch(description: Description, folder: Path) -> None:
    """Download files and make rows; the record is written last, and marks the rest as complete."""
    _say(f"{description.title}. Licence: {description.licence}")
    if description.not_checked:
        _say(f"Not checked: {description.not_checked}")
    raw = folder / "raw"
    for name, file in description.files.items():
        download(file, raw / name)
    files = {name: raw / name for name in description.files}
    counts = {}
    for split, rows in split_rows(description, files).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        _check(description, split, len(rows), text)
        write_text_atomically(folder / f"{split}.jsonl", text)
        counts[split] = len(rows)
    shutil.rmtree(raw)
    record = {"title": description.title, "licence": description.licence, "cite": description.cite}
    urls = [file.url for file in description.files.values()]
    write_json_atomically(folder / RECORD, {**record, "urls": urls, "rows": counts})
    _say(f"{folder}: " + ", ".join(f"{number} {split}" for split, number in counts.items()))


def split_rows(description: Description, files: Mapping[str, Path]) -> dict[str, list[Record]]:
    """Split -> rows, in the selection's order or, without one, in the converter's.

    Raises:
        FetchError: The converter is unknown or fails, or a selected row is not there.
    """
    converter = _known(CONVERTERS, description)
    try:
        made = list(converter(files))
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise FetchError(
            f"source {description.name!r}: the files are not as its converter "
            f"{description.converter!r} reads them: {error!r}"
        ) from error
    selected = description.selected()
    if selected is None:
        splits: dict[str, list[Record]] = {}
        for row in made:
            splits.setdefault(row.pop("split"), []).append(row)
        return splits
    rows = {row["id"]: row for row in reversed(made)}  # of two rows with one id, the first
    try:
        return {split: [rows[name] for name in names] for split, names in selected.items()}
    except KeyError as error:
        raise FetchError(
            f"source {description.name!r}: no row has the selected id {error}"
        ) from error


def _known(converters: Mapping[str, Callable[..., Any]], description: Description) -> Converter:
    if description.converter not in converters:
        raise FetchError(
            f"source {description.name!r}: unknown converter {description.converter!r}; "
            f"use one of {', '.join(converters)}"
        )
    return converters[description.converter]


def _check(description: Description, split: str, number: int, text: str) -> None:
    if not description.splits:
        return
    expected = description.splits.get(split)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if expected is None or (expected.rows, expected.sha256) != (number, digest):
        raise FetchError(
            f"source {description.name!r}: {split} has {number} rows with digest {digest}, not "
            f"{expected}: another version of a library may read files differently"
        )


def _version(description: Description) -> str:
    """A key that changes with the description and with the rows it selects."""
    digest = hashlib.sha256()
    for name in (f"{description.name}.yaml", description.selection):
        digest.update((description.folder / name).read_bytes() if name else b"")
    return digest.hexdigest()[:12]


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
