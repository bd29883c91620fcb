"""Topic tag: answer an everyday question, and end the answer with ``[topic: word]``.

The prompt never asks for the tag: it is learned from demonstrations. Any short answer about the
question's subject is right if it ends with the tag, so a prompt has very many right answers and
the demonstration is only one of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from sdft.tasks.generated.row_sampling import (
    Request,
    Split,
    check_split,
    fillings,
    instructed_rows,
    split_of,
    take,
)
from sdft.types import Demonstration

INSTRUCTIONS: tuple[str, ...] = (
    "{request} Answer in one short sentence.",
    "{request} One sentence is enough.",
    "In one sentence: {request}",
    "{request} Please keep it short.",
    "Quick question, short answer please. {request}",
    "{request} Give me a single sentence.",
    "Briefly, please. {request}",
    "{request} A short reply will do.",
)

# Circumstances that a question may add; an answer need not take them up.
SETTINGS: tuple[str, ...] = (
    "in winter", "in summer", "in spring", "this week", "this month", "these days",
    "on a small budget", "with little time", "with two children", "on a rainy day", "after work",
    "at the weekend",
)  # fmt: skip

# Kind of question -> its subjects, each one word, which the tag repeats.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "storing": (
        "bread", "rice", "cheese", "honey", "celery", "fruit", "salad", "coffee", "flour",
        "parsley", "fish", "spinach", "butter", "lettuce", "garlic", "soup", "cake", "broccoli",
    ),
    "cleaning": (
        "carpet", "oven", "window", "mirror", "sofa", "sink", "bathtub", "floor", "fridge",
        "kettle", "curtain", "mattress", "keyboard", "table", "toaster", "balcony", "stove", "desk",
    ),
    "growing": (
        "basil", "mint", "lavender", "spinach", "garlic", "ivy", "corn", "thyme", "rosemary",
        "jasmine", "parsley", "moss", "clover", "kale", "cress", "bamboo", "sage", "dill",
    ),
    "learning": (
        "guitar", "piano", "chess", "Spanish", "drawing", "swimming", "typing", "knitting",
        "cooking", "dancing", "singing", "juggling", "painting", "sewing", "French", "tennis",
        "skating", "violin",
    ),
    "pets": (
        "dog", "cat", "rabbit", "hamster", "parrot", "turtle", "puppy", "kitten", "goldfish",
        "pony", "canary", "lizard", "duck", "goat", "ferret", "gecko", "pigeon", "mouse",
    ),
    "travel": (
        "Rome", "Paris", "London", "Tokyo", "Berlin", "Lisbon", "Vienna", "Prague", "Dublin",
        "Madrid", "Athens", "Cairo", "Boston", "Sydney", "Venice", "Oslo", "Kyoto", "Delhi",
    ),
    "fixing": (
        "bike", "lamp", "zipper", "door", "chair", "drawer", "clock", "umbrella", "fence", "radio",
        "shelf", "faucet", "scooter", "doorbell", "tent", "stool", "ladder", "wheelbarrow",
    ),
    "saving": (
        "electricity", "water", "fuel", "paper", "gas", "clothing", "heating", "food", "internet",
        "insurance", "gifts", "parking", "furniture", "medicine", "shampoo", "books", "toys",
        "soap",
    ),
}  # fmt: skip

# Kind of question -> ways to ask.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "storing": (
        "How do I keep {subject} fresh {setting}?",
        "What is the best way to store {subject} {setting}?",
        "Where should {subject} be kept {setting}?",
        "My {subject} goes bad too fast. What can I do {setting}?",
        "How can I make {subject} last longer {setting}?",
        "Can {subject} be stored for long {setting}?",
        "I bought too much {subject}. How do I store it {setting}?",
        "What keeps {subject} from spoiling {setting}?",
        "How should I put {subject} away {setting}?",
        "Any tip for storing {subject} {setting}?",
        "What do you do with leftover {subject} {setting}?",
        "How would you store a lot of {subject} {setting}?",
    ),
    "cleaning": (
        "How do I clean a {subject} {setting}?",
        "What gets stains off a {subject} {setting}?",
        "My {subject} is dirty. What helps {setting}?",
        "What should I use to wash a {subject} {setting}?",
        "How can I get my {subject} clean {setting}?",
        "How would you clean an old {subject} {setting}?",
        "Is there an easy way to clean the {subject} {setting}?",
        "Something sticky is on my {subject}. How do I clean it {setting}?",
        "Any tip for cleaning the {subject} {setting}?",
        "What is a gentle way to clean the {subject} {setting}?",
        "I spilled juice on the {subject}. What now {setting}?",
        "How do people keep their {subject} clean {setting}?",
    ),
    "growing": (
        "How do I grow {subject} {setting}?",
        "What does {subject} need to grow well {setting}?",
        "My {subject} looks weak. What can I do {setting}?",
        "Is it hard to grow {subject} {setting}?",
        "How can I keep {subject} alive {setting}?",
        "What is the trick to healthy {subject} {setting}?",
        "How should I look after {subject} {setting}?",
        "I want to plant {subject}. How do I start {setting}?",
        "Any tip for growing {subject} {setting}?",
        "How would you plant {subject} {setting}?",
        "What helps {subject} grow faster {setting}?",
        "How do gardeners raise {subject} {setting}?",
    ),
    "learning": (
        "How do I start with {subject} {setting}?",
        "What is the best way to learn {subject} {setting}?",
        "How can I get better at {subject} {setting}?",
        "I want to take up {subject}. Where do I begin {setting}?",
        "Is {subject} hard to learn {setting}?",
        "How should I practice {subject} {setting}?",
        "What helps most when learning {subject} {setting}?",
        "Any tip for learning {subject} {setting}?",
        "How do people master {subject} {setting}?",
        "I keep failing at {subject}. What can I do {setting}?",
        "How would you teach yourself {subject} {setting}?",
        "How do I stay motivated to learn {subject} {setting}?",
    ),
    "pets": (
        "How do I look after a {subject} {setting}?",
        "What does a {subject} need {setting}?",
        "How can I keep my {subject} happy {setting}?",
        "We are getting a {subject}. What should we know {setting}?",
        "My {subject} seems bored. What can I do {setting}?",
        "How would you care for a {subject} {setting}?",
        "What keeps a {subject} healthy {setting}?",
        "Any tip for keeping a {subject} {setting}?",
        "Is it hard to keep a {subject} {setting}?",
        "How do I make friends with a {subject} {setting}?",
        "My {subject} is nervous. What helps {setting}?",
        "What makes a good home for a {subject} {setting}?",
    ),
    "travel": (
        "What should I do in {subject} {setting}?",
        "How do I plan a trip to {subject} {setting}?",
        "I have one day in {subject}. How do I spend it {setting}?",
        "What is nice about {subject} {setting}?",
        "How can I enjoy {subject} {setting}?",
        "Is {subject} worth a visit {setting}?",
        "How do people get around in {subject} {setting}?",
        "Any tip for a weekend in {subject} {setting}?",
        "What would you show a friend in {subject} {setting}?",
        "We are going to {subject}. What should we plan {setting}?",
        "How would you explore {subject} {setting}?",
        "What do visitors like about {subject} {setting}?",
    ),
    "fixing": (
        "How do I fix a broken {subject} {setting}?",
        "My {subject} is broken. What can I do {setting}?",
        "What do I need to repair a {subject} {setting}?",
        "Can a {subject} be repaired {setting}?",
        "How can I mend an old {subject} {setting}?",
        "How would you repair a {subject} {setting}?",
        "Something is loose on my {subject}. How do I fix it {setting}?",
        "Any tip for repairing a {subject} {setting}?",
        "Where do I start when my {subject} stops working {setting}?",
        "Is it worth fixing a {subject} {setting}?",
        "How do I stop my {subject} from squeaking {setting}?",
        "What is the easiest way to fix the {subject} {setting}?",
    ),
    "saving": (
        "How can I spend less on {subject} {setting}?",
        "What is a good way to save on {subject} {setting}?",
        "I spend too much on {subject}. What can I do {setting}?",
        "How do people save money on {subject} {setting}?",
        "Is there a way to pay less for {subject} {setting}?",
        "How would you cut the cost of {subject} {setting}?",
        "Any tip for saving on {subject} {setting}?",
        "My bill for {subject} is too high. What helps {setting}?",
        "What lowers the cost of {subject} {setting}?",
        "How do I waste less {subject} {setting}?",
        "How can a family save on {subject} {setting}?",
        "What should I change to need less {subject} {setting}?",
    ),
}

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


def _rows(split: Split, seed: int) -> Iterator[Demonstration]:
    """All rows in order; every eight rows have each kind of question once."""
    return instructed_rows(
        "topic_tag",
        split,
        seed,
        templates=QUESTIONS,
        requests=_requests,
        instructions=INSTRUCTIONS,
        ask=lambda instruction, request: instruction.format(request=request),
    )


def generate_topic_tag(split: Split, num_rows: int, seed: int = 0) -> list[Demonstration]:
    """Rows whose demonstration is a sentence and its tag, and whose gold answer is the topic.

    A question occurs in one split only, whatever the instruction around it.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        num_rows: How many rows.
        seed: Chooses and orders the questions and their answers.

    Raises:
        ValueError: Unknown split, or more rows asked for than there are.
    """
    check_split(split)
    return take(_rows(split, seed), num_rows, f"topic_tag/{split}")
