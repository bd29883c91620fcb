"""Options that a configuration gives by name to a class or function: checked before the call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_options(
    kind: Callable[..., Any], options: Mapping[str, Any], what: str, given: Sequence[str] = ()
) -> None:
    """Check that a class or function takes these options, and needs no others.

    Args:
        kind: The class or function.
        options: Keyword arguments of it.
        what: What the options belong to, for errors.
        given: Parameters that are no options.

    Raises:
        ValueError: An option is unknown, missing or of the wrong type.
    """
    signature = inspect.signature(kind).parameters
    parameters = {name: each for name, each in signature.items() if name not in given}
    hints = get_type_hints(vars(kind).get("__init__", kind))
    for name, value in options.items():
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise ValueError(f"{what} has no option {name}; it has: {known}")
        if not _is_of(hints[name], value):
            raise ValueError(f"{name} of {what} is {value!r}; it must be {_in_words(hints[name])}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"{what} needs the option {name}")


def with_defaults(kind: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a class, with the defaults of those that are not given."""
    parameters = inspect.signature(kind).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return {**defaults, **options}


def _is_of(hint: Any, value: object) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if alternatives := get_args(hint):
        return any(_is_of(each, value) for each in alternatives)
    return type(value) is hint or (hint is float and type(value) is int)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if alternatives := get_args(hint):
        return " or ".join(map(_in_words, alternatives))
    return "null" if hint is type(None) else str(hint.__name__)
