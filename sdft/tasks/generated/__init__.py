"""Generated tasks: rows made from templates, for runs that need no download.

``generate("routing", "train", 200)`` gives the same 200 rows everywhere. A prompt never occurs
in two splits, whatever the sizes and seeds.
"""

from __future__ import annotations

from collections.abc import Callable

from sdft.tasks.generated.new_facts import generate_new_facts
from sdft.tasks.generated.routing import generate_routing
from sdft.tasks.generated.row_sampling import SPLITS, Split
from sdft.tasks.generated.tool_call import generate_tool_call
from sdft.tasks.generated.topic_tag import generate_topic_tag
from sdft.types import Demonstration

__all__ = ["GENERATORS", "SPLITS", "Split", "generate"]

GENERATORS: dict[str, Callable[..., list[Demonstration]]] = {
    "routing": generate_routing,
    "tool_call": generate_tool_call,
    "new_facts": generate_new_facts,
    "topic_tag": generate_topic_tag,
}


def generate(
    name: str, split: Split, num_rows: int, seed: int = 0, **options: int
) -> list[Demonstration]:
    """The first ``num_rows`` rows of a generated task.

    Args:
        name: A key of :data:`GENERATORS`.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        num_rows: How many rows; a larger number only adds rows at the end.
        seed: Chooses and orders the rows; the facts and the label set do not depend on it.
        **options: Keyword options of the task's own generator.

    Raises:
        ValueError: Unknown name or split, or more rows asked for than there are.
    """
    if name not in GENERATORS:
        raise ValueError(f"unknown generated task {name!r}; use one of {', '.join(GENERATORS)}")
    return GENERATORS[name](split, num_rows, seed, **options)
