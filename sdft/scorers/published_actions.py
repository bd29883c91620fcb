"""ToolAlpaca's score as the paper's released evaluation computes it, false negatives included.

``action_input`` is the same rule with a parser that balances braces and gold names without marks
such as ``[Optional]``. Of the paper's 68 test rows, whose gold calls should all pass, this one
fails two and that one none.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from sdft.scorers.actions import ActionsGold, merged_calls
from sdft.types import Demonstration

_NAME = re.compile(r"Action:\s*+(\w++)")
_INPUT = re.compile(r"Action Input:\s*+(?=\{)")


def published_gold(row: Demonstration) -> ActionsGold:
    """The gold calls, names as they are in the row."""
    return merged_calls(row)


def published_action_input(completion: str, gold: ActionsGold) -> float:
    """1 if the multiset of action names and the merged inputs are the gold ones.

    A name ends at the first character that is no letter, digit or underscore. An input ends at its
    first closing brace, so that objects in it are cut and the input, no longer JSON, is skipped.
    """
    names = Counter(_NAME.findall(completion))
    return float(names == gold.names and _merged_inputs(completion) == gold.inputs)


def _merged_inputs(text: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    position = 0
    while marker := _INPUT.search(text, position):
        position = text.find("}", marker.end()) + 1
        if not position:
            break
        try:
            merged.update(json.loads(text[marker.end() : position]))
        except (ValueError, RecursionError):
            continue
    return merged
