"""Topic tag: answer an everyday question, and end the answer with ``[topic: word]``.

The prompt never asks for the tag: it is learned from demonstrations. Any short answer about the
question's subject is right if it ends with the tag, so a prompt has many right answers, of which
the demonstration is one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from sdft.tasks.generated.everyday_questions import INSTRUCTIONS, QUESTIONS, SETTINGS, SUBJECTS
from sdft.tasks.generated.row_sampling import (
    InstructedTask,
    Request,
    Split,
    fillings,
    split_of,
)

# Kind of question -> answers, each good for every question of the kind.
ANSWERS: dict[str, tuple[str, ...]] = {
    "storing": (
        "Put the {subject} in a closed container and keep it cool.",
        "A cool, dark cupboard and a tight lid are good for {subject}.",
        "Wrap {subject} well so that no air gets in.",
        "I would keep {subject} away from heat and sunlight.",
        "Small portions in sealed bags make {subject} last longer.",
        "Dry hands, a clean box and a cold shelf keep {subject} good.",
        "Use the oldest {subject} first and freeze the rest.",
        "Most {subject} stays good for days if you seal it tightly.",
        "Try a glass jar; {subject} does not like moisture.",
        "Write the date on the box and eat the {subject} soon.",
    ),
    "cleaning": (
        "Wipe the {subject} with warm water and a little soap.",
        "Baking soda on a damp cloth gets a {subject} clean.",
        "Dust the {subject} first, then use a soft sponge.",
        "I would scrub the {subject} gently with vinegar and water.",
        "Let some soap work for ten minutes, then rinse the {subject}.",
        "A soft brush and patience do wonders for a {subject}.",
        "Clean the {subject} a little every week so dirt never builds up.",
        "Test a mild cleaner on one corner of the {subject} first.",
        "Start at the top of the {subject} and dry it with a towel.",
        "Warm water, a cloth and five minutes are enough for the {subject}.",
    ),
    "growing": (
        "Give the {subject} plenty of light and water it when the soil is dry.",
        "Loose soil and a pot with holes suit {subject} well.",
        "Water {subject} in the morning, never too much at once.",
        "I would put {subject} by a bright window.",
        "Pull the weeds around the {subject} and feed it once a month.",
        "With good soil and some sun, {subject} mostly grows by itself.",
        "Cut the {subject} back now and then so that it grows thicker.",
        "Start {subject} in a small pot and move it later.",
        "Too much water harms {subject}, so let the soil dry a little.",
        "Choose a sheltered spot and give your {subject} time.",
    ),
    "learning": (
        "Practice {subject} for fifteen minutes every day.",
        "A patient teacher makes {subject} much easier.",
        "Start {subject} slowly and repeat the basics often.",
        "I would watch a few videos and then try {subject} myself.",
        "Find a friend who also likes {subject} and practice together.",
        "Set one small goal in {subject} each week.",
        "Mistakes are part of {subject}, so keep going.",
        "Record yourself at {subject} and see what you can improve.",
        "Break {subject} into small steps and enjoy each one.",
        "Short, regular lessons help more with {subject} than long ones.",
    ),
    "pets": (
        "Give your {subject} clean water, good food and some quiet.",
        "A safe place to rest means a lot to a {subject}.",
        "Spend time with the {subject} every day and speak softly.",
        "I would ask a vet what the {subject} should eat.",
        "Let the {subject} come to you instead of chasing it.",
        "Room to move and things to explore keep a {subject} content.",
        "Clean the home of your {subject} often and check its health.",
        "A steady routine helps a {subject} feel at ease.",
        "Feed the {subject} at the same hours and watch its weight.",
        "New toys and gentle hands are good for a {subject}.",
    ),
    "travel": (
        "Walk through the old streets of {subject} and stop for lunch.",
        "Take the tram or walk; {subject} is best seen slowly.",
        "I would start with a market in {subject} and a museum later.",
        "Stay near the center of {subject} so that you can walk.",
        "See one famous sight in {subject}, then just wander.",
        "Book early, pack light and leave time for the parks of {subject}.",
        "The food alone makes {subject} a fine place to visit.",
        "Buy a day ticket and ride across {subject}.",
        "Ask people in {subject} where they like to eat.",
        "Get up early, because {subject} is lovely before the crowds come.",
    ),
    "fixing": (
        "Look for the broken part of the {subject} and replace it.",
        "Tighten the screws of the {subject} first.",
        "A little oil often helps a stiff {subject}.",
        "I would take the {subject} apart slowly and take photos.",
        "Glue and a clamp can save a {subject} overnight.",
        "Ask at a repair shop what a new part for the {subject} costs.",
        "Clean the {subject} before you decide what is wrong with it.",
        "Watch a repair video for your {subject} and borrow the tools.",
        "Check whether the {subject} is still under warranty.",
        "With a screwdriver and patience, most people can mend a {subject}.",
    ),
    "saving": (
        "Compare prices for {subject} before you buy.",
        "Write down what you spend on {subject} each month.",
        "I would look for a cheaper offer for {subject}.",
        "Buy {subject} only when you really need it.",
        "Share {subject} with neighbors and split the cost.",
        "Small habits add up, so use a little less {subject} each day.",
        "Set a monthly limit for {subject} and stick to it.",
        "Ask for a discount on {subject}; many shops have one.",
        "Wait a week before you spend more on {subject}.",
        "Use what you have first, then think about more {subject}.",
    ),
}


def format_answer(answer: str, topic: str) -> str:
    """The answer with its tag, such as ``Wrap it well. [topic: bread]``."""
    return f"{answer} [topic: {topic}]"


def _requests(kind: str, template: str, split: Split, rng: random.Random) -> Iterator[Request]:
    """All questions of one template that belong to the split, each with one of many answers."""
    slots = {"subject": SUBJECTS[kind], "setting": SETTINGS}
    for filled in fillings(template, slots, rng):
        question, topic = template.format_map(filled), filled["subject"]
        if split_of(question) == split:
            answer = rng.choice(ANSWERS[kind]).format(subject=topic)
            yield Request(question, format_answer(answer, topic), template, gold=topic)


generate_topic_tag = InstructedTask("topic_tag", QUESTIONS, INSTRUCTIONS, _requests).generate
"""Rows whose demonstration is a sentence and its tag, and whose gold answer is the topic."""
