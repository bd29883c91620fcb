"""Finds the configurations that come with the package by name, from any folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"  # in the repository, a link to its top


def with_shipped_configs(arguments: Sequence[str]) -> list[str]:
    """The command line with the paths of shipped configurations in place of their names.

    A file of that name in the working directory takes precedence over a shipped one.

    Raises:
        SystemExit: A name is neither a file nor a shipped configuration.
    """
    return list(_replaced(iter(arguments)))


def config_names() -> list[str]:
    """The names, such as ``quickstart`` and ``paper/science``."""
    paths = (path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in paths)


def _replaced(arguments: Iterator[str]) -> Iterator[str]:
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option not in ("-c", "--config"):
            yield argument
        elif equals:
            yield f"{option}={_path(value)}"
        else:
            yield option
            yield from (_path(value) for value in [next(arguments, None)] if value is not None)


def _path(value: str) -> str:
    if Path(value).is_file() or not _is_name(value):
        return value
    shipped = CONFIGS / f"{value.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return str(shipped)
    near = get_close_matches(value.removesuffix(".yaml"), config_names(), n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise SystemExit(
        f"error: --config {value}: neither a file in {Path.cwd()} nor one of the configurations "
        f"that come with the package{hint}"
    )


def _is_name(value: str) -> bool:
    """Whether a value could be a file's name: it may also be a whole configuration as text."""
    return "\n" not in value and ":" not in value and "{" not in value
