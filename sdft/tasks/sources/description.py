"""Descriptions of public data sets: files, licence, and how rows are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sdft.runs.file_values import UniqueKeyLoader, yaml_problem

DESCRIPTIONS = Path(__file__).parent / "descriptions"

T = TypeVar("T")


@dataclass(frozen=True)
class RawFile:
    """A file on the web and what its content must be.

    Args:
        url: Its address, with a commit or revision in it rather than a branch.
        sha256: The content's SHA-256.
        git_blob: The content's object id in git, if no SHA-256 is known: the SHA-1 of
            ``blob SIZE`` and the content. Give this or ``sha256``.
    """

    url: str
    sha256: str = ""
    git_blob: str = ""

    def __post_init__(self) -> None:
        if not self.url.startswith(("https://", "http://")):
            raise ValueError(f"url {self.url!r} is not one of http or https")
        if bool(self.sha256) == bool(self.git_blob):
            raise ValueError(f"{self.url}: give one checksum, sha256 or git_blob")


@dataclass(frozen=True)
class Split:
    """The expected number and digest of a split's rows; any other is an error.

    Args:
        rows: Their number.
        sha256: The SHA-256 of the JSON Lines file that the fetcher writes.
    """

    rows: int
    sha256: str


@dataclass(frozen=True)
class Description:
    """A public data set.

    Args:
        title: Its name and version.
        licence: The licence of the rows, and where it is stated.
        cite: The paper to cite.
        converter: The function of :data:`sdft.tasks.sources.CONVERTERS` that makes the rows.
        files: The converter's name of each file -> where it is.
        selection: A file, relative to the description, that lists ids of rows in order; empty
            where the converter says which split a row belongs to.
        splits: What each split must be; empty if the rows could not be made for checking.
        not_checked: What has not been tested.
        name: The description's own name.
        folder: The folder that holds it.
    """

    title: str
    licence: str
    cite: str
    converter: str
    files: Mapping[str, RawFile]
    selection: str = ""
    splits: Mapping[str, Split] = field(default_factory=dict)
    not_checked: str = ""
    name: str = ""
    folder: Path = DESCRIPTIONS

    def selected(self) -> dict[str, list[str]] | None:
        """Split -> ids of its rows in order; None if the converter chooses the splits."""
        if not self.selection:
            return None
        ids: dict[str, list[str]] = {}
        prefix, chosen = "", [""]
        for line in (self.folder / self.selection).read_text("utf-8").splitlines():
            if line.startswith("["):
                split, prefix = line.strip("[]").split(" ")
                chosen = ids.setdefault(split, [])
            else:
                chosen += [f"{prefix}{name}" for name in line.split()]
        return ids


def shipped_rows(source: str) -> Path | None:
    """The folder of a data set whose rows come with the package; None for all others."""
    folder = DESCRIPTIONS / source
    return folder if source and folder.is_dir() else None


def description_names() -> list[str]:
    """The names of the descriptions that come with the package."""
    return sorted(path.stem for path in DESCRIPTIONS.rglob("*.yaml"))


def read_description(source: str) -> Description:
    """Read a description by its name, or your own by its path.

    Raises:
        ValueError: There is none of that name, or it is not usable; names the file.
    """
    path = _path(source)
    if not path.is_file():
        near = get_close_matches(source, description_names(), n=3, cutoff=0.4)
        raise ValueError(
            f"source {source!r}: there is no file {path}; use "
            f"{' or '.join(near or description_names())}, or the path of a description"
        )
    try:
        values = yaml.load(path.read_text("utf-8"), UniqueKeyLoader)
        values["files"] = _each(RawFile, values.get("files") or {})
        values["splits"] = _each(Split, values.get("splits") or {})
        return Description(**values, name=path.stem, folder=path.parent)
    except yaml.MarkedYAMLError as error:
        raise ValueError(yaml_problem(path, error)) from error
    except (TypeError, ValueError, AttributeError) as error:
        known = ", ".join(each.name for each in fields(Description))
        raise ValueError(f"{path}: {error}; a description has {known}") from error


def _path(source: str) -> Path:
    """Of a path, itself; of a name, where its description lies or would lie."""
    if source.endswith((".yaml", ".yml")):
        return Path(source)
    found = [each for each in DESCRIPTIONS.rglob("*.yaml") if each.stem == source]
    return found[0] if found else DESCRIPTIONS / f"{source}.yaml"


def _each(kind: type[T], values: Mapping[str, Any]) -> dict[str, T]:
    return {name: kind(**options) for name, options in values.items()}
