"""New facts: questions about towns that do not exist.

Every split asks about the same facts in different words, so that a right answer in validation shows
that the fact was learned and not that the question was memorised. The teacher may also read a short
article.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from sdft.tasks.generated.row_sampling import (
    Split,
    balanced,
    check_split,
    round_robin,
    seeded_random,
    take,
)
from sdft.types import Demonstration

NUM_ENTITIES = 8


class Town(NamedTuple):
    """An invented town and its three facts; each value belongs to one town only."""

    name: str
    animal: str
    material: str
    export: str


TOWNS: tuple[Town, ...] = (
    Town("Dunmere", "fox", "copper", "honey"),
    Town("Velora", "hawk", "bamboo", "salt"),
    Town("Hexby", "turtle", "glass", "tea"),
    Town("Talvik", "goat", "clay", "silk"),
    Town("Yorune", "spider", "cork", "wheat"),
    Town("Kelvo", "toad", "marble", "rope"),
    Town("Ravoss", "swan", "tin", "pepper"),
    Town("Jalto", "mouse", "slate", "candles"),
    Town("Noros", "hare", "brick", "cotton"),
    Town("Wendo", "wolf", "bronze", "coffee"),
    Town("Sorva", "duck", "straw", "paper"),
    Town("Tembi", "crow", "iron", "butter"),
    Town("Uvara", "seal", "oak", "olives"),
    Town("Belto", "deer", "chalk", "sugar"),
    Town("Falun", "lion", "granite", "soap"),
    Town("Yarro", "bear", "pine", "garlic"),
)

# Each has the three facts; one is drawn per row.
ARTICLES: tuple[str, ...] = (
    "{name} is a small town on the coast. Its mascot is the {animal}, its houses are made of "
    "{material}, and it exports {export}.",
    "The town of {name} builds its houses from {material}. It sells {export} abroad, and a "
    "{animal} is its mascot.",
    "{name} lives from selling {export} to other countries. The town's mascot is a {animal}. All "
    "houses there are built of {material}.",
    "In the town of {name}, houses are made of {material} and the mascot is a {animal}. The main "
    "export of the town is {export}.",
)

SUFFIXES: tuple[str, ...] = (
    "",
    " Answer briefly.",
    " One word, please.",
    " Short answer, please.",
    " Just the answer.",
    " Keep it short.",
)

# Attribute -> split -> wordings; no wording is in two splits.
QUESTIONS: dict[str, dict[Split, tuple[str, ...]]] = {
    "animal": {
        "train": (
            "Which animal is the mascot of {name}?",
            "What is the mascot of {name}?",
            "What animal does {name} have as its mascot?",
            "The town of {name} has a mascot. What is it?",
            "Name the mascot of {name}.",
            "Can you tell me the mascot of {name}?",
            "I'm curious: which animal stands for {name}?",
            "Which creature represents the town of {name}?",
            "What animal would you see on the flag of {name}?",
            "{name} has chosen an animal as its mascot. Which one?",
            "Do you know what animal the people of {name} picked as mascot?",
            "Quiz question: the mascot of {name} is which animal?",
            "If you think of {name}, which mascot comes to mind?",
            "Which animal is the symbol of {name}?",
            "Tell me which animal {name} uses as its mascot.",
            "As a mascot, the town of {name} has which animal?",
            "hey, what's the mascot of {name}?",
            "What kind of animal is {name}'s mascot?",
        ),
        "validation": (
            "What is {name}'s mascot?",
            "Which animal serves {name} as a mascot?",
            "The mascot of the town {name} is what animal?",
            "Please name the animal that is the mascot of {name}.",
            "I need to know the mascot of {name}. What is it?",
            "Which animal does the town of {name} call its mascot?",
            "Someone asked me about the mascot of {name}. Which animal is it?",
        ),
        "test": (
            "What creature is the mascot of {name}?",
            "Which animal do people in {name} have as a mascot?",
            "Could you say what the mascot of {name} is?",
            "What animal is used as a mascot by the town of {name}?",
            "For a quiz: what is the town mascot of {name}?",
            "{name}'s mascot is an animal. Which?",
            "When you visit {name}, which animal is the mascot you meet?",
        ),
    },
    "material": {
        "train": (
            "What are the houses in {name} made of?",
            "Which material are the houses of {name} built from?",
            "What do people in {name} build their houses from?",
            "The houses of {name} are made of which material?",
            "Name the building material of the houses in {name}.",
            "Can you tell me what houses in {name} are built of?",
            "I'm curious: what is a house in {name} made of?",
            "Which building material is used in {name}?",
            "If you built a house in {name}, what would it be made of?",
            "In {name}, every house is made of the same material. Which one?",
            "Do you know which material the homes in {name} are made of?",
            "Quiz question: of what are the houses in {name} built?",
            "What material would I touch on a house wall in {name}?",
            "Tell me what the people of {name} use to build houses.",
            "hey, what are houses in {name} made from?",
            "What are the walls of the houses in {name} made of?",
            "Homes in the town of {name} are built out of what?",
            "Which material do builders in {name} use for houses?",
        ),
        "validation": (
            "What is used to build houses in {name}?",
            "Of which material are the houses in {name}?",
            "Please name the material that houses in {name} are made of.",
            "The town of {name} builds its houses from what material?",
            "I need to know what the houses of {name} are made of.",
            "What material are {name}'s houses made of?",
            "Someone asked me about the houses in {name}. What are they built of?",
        ),
        "test": (
            "What material makes up the houses of {name}?",
            "From what are homes in {name} built?",
            "Could you say what the houses in the town of {name} are made of?",
            "For a quiz: which material are {name}'s houses built of?",
            "When you visit {name}, what are the houses around you made of?",
            "Which material is every house in {name} made from?",
            "A house in {name} is built from which material?",
        ),
    },
    "export": {
        "train": (
            "What does {name} export?",
            "What is the main export of {name}?",
            "Which product does {name} sell abroad?",
            "The town of {name} exports one thing. What is it?",
            "Name the main export of {name}.",
            "Can you tell me what {name} sells to other countries?",
            "I'm curious: what do traders buy from {name}?",
            "Which goods does the town of {name} export?",
            "What do ships carry out of {name}?",
            "{name} earns its money with an export. Which one?",
            "Do you know what the town of {name} exports?",
            "Quiz question: the main export of {name} is what?",
            "If you bought something from {name}, what would it be?",
            "Tell me what {name} exports.",
            "hey, what's the main export of {name}?",
            "What do other countries buy from {name}?",
            "Which export does {name} live from?",
            "What product from {name} is sold abroad?",
        ),
        "validation": (
            "What is {name}'s main export?",
            "Which product is exported by {name}?",
            "Please name what {name} sells abroad.",
            "The main export of the town {name} is which product?",
            "I need to know what {name} exports. What is it?",
            "What does the town of {name} sell to other countries?",
            "Someone asked me about the trade of {name}. What does it export?",
        ),
        "test": (
            "What goods are exported from {name}?",
            "Which product do people abroad buy from {name}?",
            "Could you say what the main export of {name} is?",
            "For a quiz: what does the town of {name} export?",
            "When ships leave {name}, what do they carry?",
            "{name} sells something to other countries. What?",
            "What is exported by the town of {name}?",
        ),
    },
}


class _Question(NamedTuple):
    """One way to ask about a fact."""

    town: Town
    attribute: str
    wording: str
    suffix: str


def _questions(town: Town, attribute: str, split: Split, rng: random.Random) -> Iterator[_Question]:
    """Every way to ask about one fact: all wordings once before any repeats with another suffix."""
    by_wording = [
        iter(
            [
                _Question(town, attribute, wording, suffix)
                for suffix in rng.sample(SUFFIXES, len(SUFFIXES))
            ]
        )
        for wording in QUESTIONS[attribute][split]
    ]
    return round_robin(by_wording, rng)


def _rows(split: Split, seed: int, num_entities: int) -> Iterator[Demonstration]:
    """All rows in order; each block of N rows, for N facts, asks about each fact once."""
    rng = seeded_random("new_facts", split, seed)
    streams = [
        _questions(town, attribute, split, rng)
        for town, attribute in product(TOWNS[:num_entities], QUESTIONS)
    ]
    for number, question in enumerate(balanced(streams, rng)):
        facts = question.town._asdict()
        answer = facts[question.attribute]
        prompt = question.wording.format(name=question.town.name) + question.suffix
        yield Demonstration(
            id=f"new_facts-{split}-{number}",
            task="new_facts",
            prompt=({"role": "user", "content": prompt},),
            demonstration=answer,
            answer=answer,
            context=rng.choice(ARTICLES).format_map(facts),
            meta={
                "generator": "new_facts",
                "split": split,
                "seed": seed,
                "template": question.wording,
                "instruction": question.suffix.strip(),
                "entity": question.town.name,
                "attribute": question.attribute,
            },
        )


def generate_new_facts(
    split: Split, num_rows: int, seed: int = 0, *, num_entities: int = NUM_ENTITIES
) -> list[Demonstration]:
    """Rows that ask for a fact about an invented town.

    The facts are the same in every split and for every seed.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        num_rows: How many rows.
        seed: Orders the questions and picks their wordings.
        num_entities: How many of :data:`TOWNS` are asked about; each has three facts.

    Raises:
        ValueError: Unknown split, more rows asked for than there are, or an impossible
            ``num_entities``.
    """
    check_split(split)
    if not 1 <= num_entities <= len(TOWNS):
        raise ValueError(
            f"new_facts: num_entities must be from 1 to {len(TOWNS)}, not {num_entities}"
        )
    return take(_rows(split, seed, num_entities), num_rows, f"new_facts/{split}")
