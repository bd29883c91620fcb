"""Read values from files that may be broken or malicious; errors name the file and the place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")

CONTROL = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")
"""Control characters other than tab and line feed, which SVG and HTML cannot contain."""


EARLIER_KEYS = {"flops": "operations"}
"""Key of a run's file -> its name in files of an earlier version."""


class UniqueKeyLoader(yaml.SafeLoader):
    """Loads YAML and rejects a key that stands twice in a mapping, of which one would be lost."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Reject a repeated key; compose any other mapping. Keys merged by << can be overridden."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


def yaml_problem(path: Path, error: yaml.MarkedYAMLError) -> str:
    """What is wrong with a YAML file, and where, in one line."""
    mark = error.problem_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{path}{place}: not valid YAML: {error.problem}"


class PlainLoader(UniqueKeyLoader):
    """Loads plain YAML without aliases, which can make a small file expand without limit."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Reject an alias; compose any other node."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias, and the configuration of a run has none")
        return super().compose_node(parent, index)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains one object.

    Raises:
        ValueError: There is no such file, or it is not one JSON object.
    """
    return _read(path, json.loads)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains one mapping; errors as above."""
    return _read(path, lambda content: yaml.load(content, PlainLoader))


def of_kind(value: object, kind: type[T], where: str) -> T:
    """Return the value if it has the given type.

    Raises:
        ValueError: It has another type; the message names ``where``.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r:.60}, not a {kind.__name__}")
    return value


def member(record: Mapping[str, Any], key: str, kind: type[T], where: str = "") -> T:
    """The value of a key in an object of a run's file.

    Args:
        record: An object of a run's file.
        key: The key to look up.
        kind: The type that the value must have.
        where: Text before the key in an error, such as "row 3: ".

    Raises:
        ValueError: The key is missing, or its value has another type.
    """
    if key not in record:
        old = EARLIER_KEYS.get(key)
        what = f"{old!r} is now {key!r}" if old in record else f"there is no key {key!r}"
        raise ValueError(
            f"{where}{what}, so another version wrote the file: repeat the run with this one, or "
            "leave it out"
        )
    return of_kind(record[key], kind, f"{where}{key!r}")


def text(value: object, where: str) -> str:
    """Text that is valid in all of the report's files: control characters are replaced."""
    clean = of_kind(value, str, where).translate(CONTROL)
    return clean.encode("utf-8", "replace").decode()


def share(value: object, where: str) -> float | None:
    """A number from 0 to 1, or None for what was not measured."""
    number = amount(value, where)
    if number is not None and number > 1:
        raise ValueError(f"{where} is {number}; it must lie between 0 and 1, or be null")
    return number


def finite(value: object, where: str) -> float:
    """A finite number of either sign."""
    number = float(str(value)) if type(value) is int else of_kind(value, float, where)
    if not math.isfinite(number):
        raise ValueError(f"{where} is {number}; it must be a finite number")
    return number


def shares(members: Mapping[str, Any], where: str) -> dict[str, float | None]:
    """Accuracies by name, each from 0 to 1, or None for what was not measured."""
    return {
        text(name, where): share(item, f"{name!r} in {where}") for name, item in members.items()
    }


def amount(value: object, where: str) -> float | None:
    """A number of 0 or more, or None for what was not measured."""
    if value is None:
        return None
    # Converted via text, a huge integer becomes infinite instead of raising an OverflowError.
    number = float(str(value)) if type(value) is int else of_kind(value, float, where)
    if not 0 <= number < float("inf"):
        raise ValueError(f"{where} is {number}; it must be a finite number from 0, or null")
    return number


def _read(path: Path, parse: Callable[[str], object]) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the directory of a run")
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read: {reason}; leave the run out") from error
    return of_kind(value, dict, f"{path}: the content")
