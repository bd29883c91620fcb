"""Scores tool calls in ``Action:`` / ``Action Input:`` form, by the rules of ToolAlpaca and BFCL.

Calls are read from left to right in time linear in the completion's length. An input is the JSON
object that directly follows its marker, found by balancing braces; markers inside it do not
count. If an input's braces never balance, reading stops there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sdft.scorers.json_objects import object_at, whole_object
from sdft.scorers.normalisation import composed
from sdft.types import Demonstration

# Markdown's emphasis and fences around names and inputs are ignored.
_MARKER = re.compile(r"Action(?P<is_input> Input)?:[\s*`]*+")
_LANGUAGE = re.compile(r"(?<=```)json\s*+")
_NAME = re.compile(r"[\w.\-]++")
_MARK = re.compile(r"\[\w{1,32}\]\s*+")  # before a name, such as [Optional]
_IGNORED_CHARACTERS = str.maketrans("", "", " ,./-_*^")
_MAX_CALLS = 64

Call = tuple[str, dict[str, Any]]


class ActionName(NamedTuple):
    """The text after an ``Action:`` marker."""

    name: str


class ActionInput(NamedTuple):
    """The value after an ``Action Input:`` marker; None if it is not a JSON object."""

    value: dict[str, Any] | None


def read_actions(text: str) -> Iterator[ActionName | ActionInput]:
    """Names and inputs in the order of the text."""
    position = 0
    while marker := _MARKER.search(text, position):
        position = marker.end()
        if language := _LANGUAGE.match(text, position):
            position = language.end()
        if not marker["is_input"]:
            mark = _MARK.match(text, position)
            name = _NAME.match(text, mark.end() if mark else position)
            if name is not None:
                yield ActionName(name[0])
                position = name.end()
        elif text.startswith("{", position):
            value, end = object_at(text, position)
            yield ActionInput(value)
            if end is None:
                return
            position = end


@dataclass(frozen=True, slots=True)
class ActionsGold:
    """The gold calls.

    Args:
        names: How often each action is called.
        inputs: All inputs merged into one object, later keys winning.
    """

    names: Counter[str]
    inputs: dict[str, Any]


def actions_gold(row: Demonstration) -> ActionsGold:
    """The gold calls, a list of ``{"Action": name, "Action_Input": object or its JSON text}``.

    A mark such as ``[Optional]`` before a name is not part of it, here and in completions.
    """
    gold = merged_calls(row)
    names: Counter[str] = Counter()
    for name, count in gold.names.items():
        names[_MARK.sub("", name, count=1)] += count
    return ActionsGold(names, gold.inputs)


def merged_calls(row: Demonstration) -> ActionsGold:
    """The gold calls, with names as they are written."""
    if not isinstance(row.answer, list):
        raise ValueError(f'needs a list of {{"Action", "Action_Input"}}, not {row.answer!r:.80}')
    names: Counter[str] = Counter()
    inputs: dict[str, Any] = {}
    for call in row.answer:
        name, arguments = _gold_call(call)
        names[name] += 1
        inputs.update(arguments)
    return ActionsGold(names, inputs)


def _gold_call(call: object) -> Call:
    if isinstance(call, Mapping) and isinstance(call.get("Action"), str):
        arguments = call.get("Action_Input")
        if isinstance(arguments, str):
            arguments = whole_object(arguments)
        if isinstance(arguments, Mapping):
            return call["Action"], dict(arguments)
    raise ValueError(
        'needs calls of the form {"Action": name, "Action_Input": object or its JSON text}, '
        f"not {call!r:.80}"
    )


def action_input(completion: str, gold: ActionsGold) -> float:
    """1 if the actions and their inputs are the gold ones (ToolAlpaca's rule).

    The names must be the same, each the same number of times, in any order; all inputs merged into
    one object, later keys winning, must equal the gold inputs merged likewise, types included (5 is
    not "5"). Inputs that are not JSON are skipped; backticks, a fence and emphasis around an input
    or a name do not count. Which input belongs to which action is not checked.
    """
    names: Counter[str] = Counter()
    inputs: dict[str, Any] = {}
    for part in read_actions(completion):
        if isinstance(part, ActionName):
            names[part.name] += 1
        elif part.value is not None:
            inputs.update(part.value)
    return float(names == gold.names and inputs == gold.inputs)


def accepted_gold(row: Demonstration) -> list[Mapping[str, Any]]:
    """The gold calls of ``meta.accepted``: each ``{name: {parameter: [accepted values]}}``."""
    calls = row.meta.get("accepted")
    if not isinstance(calls, list) or not all(map(_is_accepted_call, calls)):
        raise ValueError(
            "needs meta.accepted, a list of {name: {parameter: [accepted values]}}, "
            f"not {calls!r:.80}"
        )
    if len(calls) > _MAX_CALLS:
        raise ValueError(f"takes at most {_MAX_CALLS} calls a row, not {len(calls)}")
    return calls


def _is_accepted_call(call: object) -> bool:
    return (
        isinstance(call, Mapping)
        and len(call) == 1
        and all(
            isinstance(parameters, Mapping)
            and all(isinstance(accepted, list) for accepted in parameters.values())
            for parameters in call.values()
        )
    )


def accepted_calls(completion: str, gold: list[Mapping[str, Any]]) -> float:
    """1 if the calls can be paired one to one with the gold calls, in any order (BFCL's rule).

    In a pair the names are equal, every given parameter is known and has an accepted value, and
    every parameter left out has "" among its accepted values. Strings are compared in lower case
    without blanks and the characters ``,./-_*^``; 5 equals 5.0; lists element by element; an
    object's values by accepted lists in turn. Fences are ignored, as in ``action_input``.
    """
    calls = _paired_calls(completion)
    if len(calls) != len(gold):
        return 0.0
    fits = [[_fits(call, accepted) for accepted in gold] for call in calls]
    partner: dict[int, int] = {}

    def place(call: int, tried: set[int]) -> bool:
        """Pair the call with a gold call, re-pairing earlier calls where needed."""
        for candidate in range(len(gold)):
            if fits[call][candidate] and candidate not in tried:
                tried.add(candidate)
                if candidate not in partner or place(partner[candidate], tried):
                    partner[candidate] = call
                    return True
        return False

    return float(all(place(call, set()) for call in range(len(calls))))


def _paired_calls(completion: str) -> list[Call]:
    """Each name with the input that follows it; a name without a JSON object gives no call."""
    calls: list[Call] = []
    name: str | None = None
    for part in read_actions(completion):
        if isinstance(part, ActionName):
            name = part.name
        elif name is not None and part.value is not None:
            calls.append((name, part.value))
            name = None
    return calls


def _fits(call: Call, accepted: Mapping[str, Any]) -> bool:
    name, arguments = call
    return name in accepted and _object_fits(arguments, accepted[name])


def _object_fits(value: Mapping[str, Any], accepted: Mapping[str, Any]) -> bool:
    if not value.keys() <= accepted.keys():
        return False
    return all(
        _is_accepted(value[key], choices) if key in value else "" in _as_list(choices)
        for key, choices in accepted.items()
    )


def _is_accepted(value: object, choices: object) -> bool:
    return any(_value_fits(value, choice) for choice in _as_list(choices))


def _value_fits(value: object, accepted: object) -> bool:
    if isinstance(accepted, Mapping):
        return isinstance(value, Mapping) and _object_fits(value, accepted)
    if isinstance(accepted, list):
        return (
            isinstance(value, list)
            and len(value) == len(accepted)
            and all(map(_value_fits, value, accepted))
        )
    if isinstance(accepted, str):
        return isinstance(value, str) and _plain(value) == _plain(accepted)
    return isinstance(value, bool) == isinstance(accepted, bool) and value == accepted


def _as_list(choices: object) -> list[Any]:
    return choices if isinstance(choices, list) else [choices]


def _plain(text: str) -> str:
    return composed(text).lower().translate(_IGNORED_CHARACTERS)
