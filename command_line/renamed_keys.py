"""Refuses options that have been renamed, and names the new ones, before parsing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from sdft.runs.file_values import UniqueKeyLoader, yaml_problem

LEFT_OUT = ("fit", "validate", "test", "init_args")  # of the names below
# Old name -> what to write instead.
RENAMED = {
    "model.max_completion_tokens": "model.max_new_tokens",
    "model.num_loss_tokens_to_skip": "model.num_masked_tokens",
    "model.opening_phrases_to_skip": "model.masked_preambles",
    "model.teacher_rate": "model.teacher.rate",
    "model.teacher_update_every": "model.teacher.update_every",
    "model.reset_teacher": "model.teacher.reset_each_stage",
    "model.teacher_pretrained": "model.teacher.pretrained",
    "model.probe_teacher": "in_context.num_rows, which is 0 for off",
    "openings": "preambles",
}
# The name is unchanged, but the value was a single word: what to write instead.
WAS_A_WORD = {"model.teacher": "model.teacher.kind"}
CONFIG_FLAGS = ("-c", "--config")


def refuse_renamed(arguments: Sequence[str]) -> None:
    """End the program if the command line or one of its configurations has an old name.

    Args:
        arguments: The command line, with paths of configurations.

    Raises:
        SystemExit: There is one; says where, and what to write instead.
    """
    for place, name, value in _options(arguments):
        words = [word for word in name.split(".") if word not in LEFT_OUT]
        for length in range(1, len(words) + 1):
            old = ".".join(words[:length])
            new = RENAMED.get(old)
            if old in WAS_A_WORD and length == len(words) and _is_word(value):
                new = f"{WAS_A_WORD[old]}: {value}"
            if new is not None:
                raise SystemExit(f"error: {place}: {old} is now {new}")


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Place, dotted name and value of every option, including those in configurations."""
    for argument, following in pairwise([*arguments, ""]):
        flag, equals, value = argument.partition("=")
        value = value if equals else following
        if flag in CONFIG_FLAGS:
            yield from ((value, name, each) for name, each in _flat(_read(value)))
        elif flag.startswith("--"):
            yield flag, flag.removeprefix("--"), value


def _read(config: str) -> Any:
    """The content of a configuration; None if the parser will report an error in it.

    Raises:
        SystemExit: A file is not valid YAML, or no mapping.
    """
    path = Path(config)
    try:
        content = yaml.load(path.read_text("utf-8") if path.is_file() else config, UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        if error.problem_mark is None or not path.is_file():
            return None
        raise SystemExit(f"error: {yaml_problem(path, error)}") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return None
    if path.is_file() and not isinstance(content, Mapping):
        held = "is empty" if content is None else f"holds {content!r:.40}"
        raise SystemExit(f"error: {path} {held}; a configuration is a mapping, such as model: …")
    return content


def _flat(options: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(options, Mapping):
        for key, value in options.items():
            inner = f"{name}.{key}".lstrip(".")
            yield inner, value
            yield from _flat(value, inner)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()
