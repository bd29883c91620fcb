"""Orders and splits generated rows.

Every random choice comes from a generator seeded by a string, and streams are consumed in order,
so a row depends on its position and never on how many rows were asked for.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from string import Formatter
from typing import Literal, NamedTuple, TypeVar, get_args

from sdft.types import Demonstration

Item = TypeVar("Item")
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Of every ten texts by hash, eight are for training, one for validation and one for test.
_TENTHS: tuple[Split, ...] = (*("train",) * 8, "validation", "test")


class Request(NamedTuple):
    """A filled template and the response to it; the gold answer, if that is another text."""

    text: str
    response: str
    template: str
    gold: str | None = None


def seeded_random(*parts: object) -> random.Random:
    """A random generator that depends only on the printed ``parts``, in every process."""
    return random.Random("/".join(str(part) for part in parts))


def split_of(text: str) -> Split:
    """The only split in which ``text`` may occur, whatever the seed."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return _TENTHS[int.from_bytes(digest, "big") % len(_TENTHS)]


def fields_of(template: str) -> tuple[str, ...]:
    """Names of the ``{fields}`` of a template, in order of appearance."""
    return tuple(name for _, name, _, _ in Formatter().parse(template) if name)


def fillings(
    template: str, slots: Mapping[str, Sequence[str]], rng: random.Random
) -> Iterator[dict[str, str]]:
    """Every way to fill a template's fields from their slots, each once, in a random order."""
    names = fields_of(template)
    num_fillings = math.prod(len(slots[name]) for name in names)
    for index in rng.sample(range(num_fillings), num_fillings):
        chosen = {}
        remainder = index
        for name in names:
            remainder, position = divmod(remainder, len(slots[name]))
            chosen[name] = slots[name][position]
        yield chosen


def round_robin(streams: Sequence[Iterator[Item]], rng: random.Random) -> Iterator[Item]:
    """One item of every stream per round, in a new random order each round.

    A stream that ends is left out of the later rounds.
    """
    live = list(streams)
    while live:
        rng.shuffle(live)
        ended = []
        for stream in live:
            items = list(islice(stream, 1))
            yield from items
            if not items:
                ended.append(stream)
        live = [stream for stream in live if stream not in ended]


def balanced(streams: Sequence[Iterator[Item]], rng: random.Random) -> Iterator[Item]:
    """Like :func:`round_robin`, but ends before the first round that lacks a stream's item."""
    while True:
        items = [item for stream in streams for item in islice(stream, 1)]
        if len(items) < len(streams):
            return
        rng.shuffle(items)
        yield from items


def around_the_request(instruction: str, request: str) -> str:
    """The usual prompt: an instruction with a field for the request."""
    return instruction.format(request=request)


@dataclass(frozen=True)
class InstructedTask:
    """A task that puts an instruction around a request of one of several kinds.

    Args:
        name: The rows' task.
        templates: Kind of request -> templates of that kind.
        instructions: Ways to ask, one drawn per row.
        requests: (kind, template, split, generator) -> the template's requests in the split.
        ask: (instruction, request's text) -> prompt.
    """

    name: str
    templates: Mapping[str, Sequence[str]]
    instructions: Sequence[str]
    requests: Callable[[str, str, Split, random.Random], Iterator[Request]]
    ask: Callable[[str, str], str] = around_the_request

    def generate(self, split: Split, num_rows: int, seed: int = 0) -> list[Demonstration]:
        """Rows of a split; each block of N rows, for N kinds, has each kind once.

        A request occurs in one split only, whatever the instruction around it.

        Args:
            split: ``"train"``, ``"validation"`` or ``"test"``.
            num_rows: How many rows.
            seed: Chooses and orders requests and instructions.

        Raises:
            ValueError: Unknown split, or more rows asked for than there are.
        """
        check_split(split)
        return take(self._rows(split, seed), num_rows, f"{self.name}/{split}")

    def _rows(self, split: Split, seed: int) -> Iterator[Demonstration]:
        """All rows in order."""
        rng = seeded_random(self.name, split, seed)
        by_kind = [
            round_robin([self.requests(kind, each, split, rng) for each in of_kind], rng)
            for kind, of_kind in self.templates.items()
        ]
        for number, request in enumerate(balanced(by_kind, rng)):
            instruction = rng.choice(self.instructions)
            yield Demonstration(
                id=f"{self.name}-{split}-{number}",
                task=self.name,
                prompt=({"role": "user", "content": self.ask(instruction, request.text)},),
                demonstration=request.response,
                answer=request.gold or request.response,
                meta={
                    "generator": self.name,
                    "split": split,
                    "seed": seed,
                    "template": request.template,
                    "instruction": instruction,
                },
            )


def check_split(split: str) -> None:
    """Raise ValueError unless ``split`` is one of :data:`SPLITS`."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")


def take(rows: Iterator[Demonstration], num_rows: int, source: str) -> list[Demonstration]:
    """The first ``num_rows`` rows.

    Args:
        rows: All distinct rows in order.
        num_rows: How many to take, at least 1.
        source: What the rows are, such as ``"routing/train"``, for messages.

    Raises:
        ValueError: Fewer than one row asked for, or more than there are.
    """
    if num_rows < 1:
        raise ValueError(f"{source}: num_rows must be at least 1, not {num_rows}")
    taken = list(islice(rows, num_rows))
    if len(taken) < num_rows:
        raise ValueError(
            f"{source}: {num_rows} rows asked for, but only {len(taken)} distinct ones exist; "
            f"ask for at most {len(taken)}"
        )
    return taken
