"""Reduces errors in a command line or a configuration to one line.

jsonargparse prints a page of usage, then every alternative that a value did not match, then the
value with all its defaults. The user needs only the option, the value, and what to write
instead.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher, get_close_matches
from pydoc import locate
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

import callbacks
import lightning_modules

NOISE = re.compile(
    r"Does not validate against any of the Union subtypes|Subtypes: |Errors:$|Given value|"
    r"Expected an? <class 'NoneType'>|Expected an? <class 'bool'>|Expected a <class 'collections|"
    r"Expected a path but .* either not accessible|- a (class path|dict)|"
    r"Not a valid subclass of|Subclass types expect|Problems? parsing config"
)
KEY = re.compile(r"Parser key \"([^\"]+)\":")
NEEDLESS = ("args", "kwargs", "self")


class OneLineParser(LightningArgumentParser):
    """A parser that ends the program with one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program with the error and the closest known name."""
        if not self.exit_on_error:  # a part of a configuration: the error for the whole says more
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        text = condensed(message) + _meant(message, parser._option_string_actions)
        sys.stderr.write(f"error: {text}\n")
        sys.exit(2)


def condensed(message: str) -> str:
    """An error of jsonargparse without the irrelevant alternatives."""
    if not NOISE.search(message) and not KEY.search(message):
        return " ".join(message.split())
    text = " ".join(dict.fromkeys(_telling(message.splitlines())))
    text = KEY.sub(r"\1:", text)
    text = re.sub(r"Problem with given class_path '([^']+)':", r"\1:", text)
    text = re.sub(r"Expected an? <class '(\w+)'>\. Got value: (\S+)", r"expected \1, got \2", text)
    text = re.sub(r"Expected an? <class '(\w+)'>", r"expected \1", text)
    choice = r": Expected a typing\.Literal\[(.+?)\]\. Got value: (\S+)"
    text = re.sub(choice, _choices, text)
    text = re.sub(r"\bmodel: [\w.]+: (\w+) is ", r"model.\1 is ", text)
    text = text.replace("Expected a dot import path string:", "there is no class")
    return re.sub(r"there is no class (true|false|[\d.]+)$", r"expected a mapping, got \1", text)


def _choices(found: re.Match[str]) -> str:
    choices = found[1].replace("'", "").split(", ")
    few = len(choices) < 5
    named = " or ".join(choices) if few else "one of " + ", ".join(choices)
    return f" is {found[2]}; it must be {named}"


def _telling(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        text = line.strip().removeprefix("- ")
        if text and not NOISE.match(text) and not NOISE.match(line.strip()):
            yield text


def _meant(message: str, options: Iterable[str]) -> str:
    """The names closest to an unknown one."""
    if "the following arguments are required" in message:
        return "; give a configuration that states them, such as --config quickstart"
    if unknown := re.search(r"unrecognized arguments: (--[\w.]+)", message):
        return _closest(unknown[1], options)
    if unknown := re.search(r"does not accept option '([\w.]+)'", message):
        return _closest(unknown[1], (option.lstrip("-") for option in options))
    if unknown := re.search(r"Option '(\w+)' is not accepted", message):
        owner = re.findall(r"class_path '([\w.]+)'", message)
        return _closest(unknown[1], _parameters(locate(owner[-1])) if owner else ())
    if unknown := re.search(r"dot import path string: (\w+)|has no attribute '(\w+)'", message):
        return _closest(unknown[1] or unknown[2], [*lightning_modules.__all__, *callbacks.__all__])
    return ""


def _closest(name: str, known: Iterable[str]) -> str:
    known = sorted({*known})
    begin_alike = [each for each in known if each.lower().startswith(name.lower())]
    near = begin_alike[:3] or _group_alike(name, known) or _alike(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _alike(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names whose last part is like this one's: groups such as --data. are many's."""
    last = {each: each.rpartition(".")[2].lstrip("-") for each in known}
    near = get_close_matches(name.rpartition(".")[2].lstrip("-"), {*last.values()}, n=3)
    found = [each for part in near for each in last if last[each] == part]
    return sorted(found, key=lambda each: -SequenceMatcher(None, name, each).ratio())[:3]


def _group_alike(name: str, known: Iterable[str]) -> list[str]:
    """The group whose name is like the first part of this one: ``model`` for ``modle.lora``."""
    groups = {each.partition(".")[0] for each in known}
    group = name.partition(".")[0]
    is_unknown = "." in name and group not in groups
    return get_close_matches(group, groups, n=1) if is_unknown else []


def _parameters(kind: Any) -> set[str]:
    """Names of a class's options, including those of its bases."""
    names: set[str] = set()
    for each in getattr(kind, "__mro__", ()):
        if "__init__" in vars(each):
            names |= inspect.signature(each.__init__).parameters.keys()
    return names - {*NEEDLESS}
