"""Tool call: write the call that a request asks for.

The tools and their parameters are not in the prompt: they are learned from demonstrations. Each
argument is copied from the request word for word, and arguments stand in the tool's own order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from sdft.tasks.generated.row_sampling import (
    InstructedTask,
    Request,
    Split,
    fillings,
    split_of,
)

INSTRUCTIONS: tuple[str, ...] = (
    "{request}\nWrite the call for this request.",
    "{request}\nTool call:",
    "{request}\nWhich call does this need?",
    "Request: {request}\nCall:",
    "{request}\nAnswer with one tool call.",
    "Write the tool call. {request}",
)

# Parameter name -> the values it may take. Parameters of different tools share their vocabulary.
VALUES: dict[str, tuple[str, ...]] = {
    "time": (
        "1 am", "2 am", "3 am", "4 am", "5 am", "6 am", "7 am", "8 am", "9 am", "10 am", "11 am",
        "1 pm", "2 pm", "3 pm", "4 pm", "5 pm", "6 pm", "7 pm", "8 pm", "9 pm", "10 pm", "11 pm",
        "noon", "midnight",
    ),
    "day": (
        "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "today",
        "tomorrow",
    ),
    "city": (
        "Oslo", "Lyon", "Porto", "Dublin", "Vienna", "Paris", "Leeds", "Boston", "Denver", "Kyoto",
        "Lima", "Cairo", "Delhi", "Perth", "Prague", "Madrid", "Athens", "Geneva", "Austin",
        "Toronto", "Naples", "Berlin", "Tokyo", "Seattle", "Hamburg", "London", "Rome", "Milan",
        "Moscow", "Dallas", "Chicago", "Sydney", "Mumbai", "Venice", "Miami", "Havana",
    ),
    "genre": (
        "jazz", "rock", "folk", "blues", "pop", "soul", "opera", "metal", "punk", "disco",
        "country", "classical", "samba", "reggae", "gospel", "techno", "funk", "swing", "piano",
        "choir",
    ),
    "room": (
        "kitchen", "bedroom", "bathroom", "garage", "office", "hall", "attic", "basement",
        "garden", "library", "studio", "nursery", "living room", "dining room", "playroom",
        "workshop", "balcony", "porch",
    ),
    "color": (
        "red", "green", "blue", "yellow", "orange", "purple", "pink", "white", "gold", "violet",
        "amber", "teal",
    ),
    "place": (
        "airport", "station", "hotel", "museum", "harbor", "hospital", "theater", "stadium",
        "zoo", "castle", "market", "university", "library", "beach", "embassy", "casino",
        "dentist", "bank", "park", "cinema",
    ),
    "word": (
        "river", "bread", "window", "friend", "mountain", "winter", "sugar", "table", "bridge",
        "horse", "morning", "garden", "music", "silver", "island", "apple", "mirror", "candle",
        "forest", "thunder", "needle", "butter", "lemon", "shadow", "button", "ladder", "feather",
        "pepper", "pillow", "rabbit",
    ),
    "language": (
        "Polish", "Spanish", "French", "German", "Italian", "Greek", "Turkish", "Swedish",
        "Dutch", "Arabic", "Hindi", "Japanese", "Korean", "Danish", "Russian", "Latin", "Irish",
        "Welsh", "Hebrew", "Chinese",
    ),
    "minutes": (
        "2", "3", "4", "5", "6", "7", "8", "9", "10", "12", "14", "15", "18", "20", "24", "25",
        "30", "35", "40", "45", "50", "55", "60", "75", "80", "90",
    ),
    "purpose": (
        "pasta", "tea", "stew", "laundry", "rice", "pizza", "bread", "yoga", "homework", "cake",
        "coffee", "exercise", "reading", "practice", "soup", "pie",
    ),
    "item": (
        "milk", "eggs", "bread", "butter", "rice", "apples", "honey", "soap", "tea", "cheese",
        "carrots", "flour", "salt", "oat milk", "bananas", "paper towels", "yogurt", "batteries",
        "candles", "tomatoes", "lemons", "pasta", "onions", "olive oil", "cereal", "toothpaste",
        "potatoes", "dog food", "garlic", "pepper", "orange juice", "peanut butter",
    ),
    "amount": (
        "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "14", "15", "16", "18", "20",
        "24", "30",
    ),
}  # fmt: skip

# Tool name -> its parameters in the order in which calls give them.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "alarm": ("day", "time"),
    "weather": ("city", "day"),
    "play": ("genre", "room"),
    "light": ("room", "color"),
    "taxi": ("place", "time"),
    "translate": ("word", "language"),
    "timer": ("minutes", "purpose"),
    "buy": ("item", "amount"),
}

# Tool name -> requests for it; a request names every parameter, in any order.
REQUESTS: dict[str, tuple[str, ...]] = {
    "alarm": (
        "Wake me up {day} at {time}.",
        "I need an alarm for {time} {day}, please.",
        "set my alarm {day} {time}",
        "I have to be out of bed by {time} {day}. Make it ring.",
        "Could you wake me at {time} {day}?",
        "Early start {day}: let the alarm go off at {time}.",
        "Don't let me sleep past {time} {day}!",
        "Alarm please. {day}, {time}.",
        "I get up at {time} {day}, so ring the alarm then.",
        "Make sure I'm awake {day} at {time}.",
        "Would you ring the alarm at {time} {day}?",
        "New alarm: {time}, {day}.",
        "My shift starts early {day}. Wake me at {time}.",
        "An alarm at {time} {day} would save me.",
    ),
    "weather": (
        "What will the weather be like in {city} {day}?",
        "Will it rain in {city} {day}?",
        "Do I need an umbrella {day} in {city}?",
        "forecast for {city}, {day}?",
        "How warm does it get in {city} {day}?",
        "I'm flying to {city} {day}. Is it going to be sunny?",
        "Tell me how cold {city} will be {day}.",
        "Is snow expected {day} in {city}?",
        "We're having a picnic in {city} {day}. How does the sky look?",
        "Any storms over {city} {day}?",
        "Weather report please: {city}, {day}.",
        "Should I pack a coat for {city} {day}?",
        "Can you check the temperature in {city} {day}?",
        "Hot or cold in {city} {day}?",
    ),
    "play": (
        "Play some {genre} in the {room}.",
        "I'd like to hear {genre} music in the {room}.",
        "Put on a little {genre} in the {room}, would you?",
        "{genre} in the {room}, please!",
        "The {room} is too quiet. How about some {genre}?",
        "Could we have {genre} playing in the {room}?",
        "start the {genre} playlist in the {room}",
        "I'm in the {room} and in the mood for {genre}.",
        "Let's dance to {genre} in the {room}!",
        "Fill the {room} with {genre} tunes.",
        "My guests in the {room} want to listen to {genre}.",
        "Stream {genre} songs to the {room} speaker.",
        "Turn on the {room} speaker and find some {genre}.",
        "Nothing beats {genre} while I tidy the {room}. Put it on.",
    ),
    "light": (
        "Make the {room} lights {color}.",
        "Turn the lamp in the {room} {color}.",
        "I want {color} light in the {room}.",
        "Can the {room} glow {color}?",
        "{color} lights in the {room}, please.",
        "switch the {room} lamps to {color}",
        "It's party time, so light the {room} in {color}!",
        "Change the color of the {room} lights to {color}.",
        "Would you set the {room} lighting to {color}?",
        "A soft {color} light for the {room} would be nice.",
        "I'd love the bulbs in the {room} to be {color}.",
        "Let the {room} shine in {color}.",
        "The {room} is dark. Give it some {color} light.",
        "Dim everything and leave the {room} lamp on {color}.",
    ),
    "taxi": (
        "Get me a taxi to the {place} at {time}.",
        "I need a cab to the {place}, pick me up at {time}.",
        "Book a ride to the {place} for {time}.",
        "At {time} I have to leave for the {place}. Order a car.",
        "taxi, {time}, to the {place}",
        "Can a driver take me to the {place} at {time}?",
        "We want to go to the {place} by cab at {time}.",
        "Please send a car at {time}. I'm going to the {place}.",
        "How about a taxi for {time}? Destination: the {place}.",
        "Have a cab waiting at {time} to bring us to the {place}.",
        "My ride to the {place} should come at {time}.",
        "I can't walk to the {place}. Call me a taxi for {time}.",
        "Reserve a car to the {place}, leaving at {time}.",
        "Grandma needs a taxi to the {place} at {time}.",
    ),
    "translate": (
        "How do you say {word} in {language}?",
        "What is the {language} word for {word}?",
        "Translate {word} into {language}, please.",
        "{word} in {language}?",
        "I'm learning {language}. How would I say {word}?",
        "Could you put {word} into {language} for me?",
        "My {language} friend asked me about the word {word}.",
        "Tell me what {word} is called in {language}.",
        "I forgot the {language} term for {word}.",
        "give me {word} in {language}",
        "For my {language} homework: what does {word} become?",
        "Which {language} word means {word}?",
        "Need the {language} for {word}, quick!",
        "Someone in the {language} class wants to know {word}.",
    ),
    "timer": (
        "Start a timer of {minutes} minutes for the {purpose}.",
        "Count down {minutes} minutes for my {purpose}.",
        "The {purpose} needs {minutes} minutes. Tell me when it's done.",
        "timer for {purpose}, {minutes} minutes",
        "Give me {minutes} minutes for {purpose}, then beep.",
        "Let me know when {minutes} minutes of {purpose} are over.",
        "{minutes} minutes on the clock for {purpose}, please.",
        "Can you time the {purpose}? It takes {minutes} minutes.",
        "I can't forget the {purpose}! Beep in {minutes} minutes.",
        "Please run a timer: {purpose}, {minutes} minutes.",
        "Ring in {minutes} minutes, I have {purpose} going.",
        "Would you time {minutes} minutes for {purpose}?",
        "My {purpose} will take {minutes} minutes, so start counting.",
        "Set the kitchen timer to {minutes} minutes for {purpose}.",
    ),
    "buy": (
        "Put {amount} packs of {item} on the shopping list.",
        "We need {amount} more packs of {item}.",
        "Add {item} to my groceries, {amount} packs.",
        "order {amount} x {item}",
        "Could you get {item}? {amount} will do.",
        "We are out of {item}. Buy {amount}.",
        "I'd like {amount} packs of {item} in my basket.",
        "Shopping list: {item}, {amount} of them.",
        "Don't forget {amount} packs of {item} at the store.",
        "For the party I need {item}, say {amount} packs.",
        "Please pick up {amount} packs of {item}.",
        "Mom wants {item}. Get her {amount} packs.",
        "Buy some {item} for me, {amount} units.",
        "Restock the pantry: {amount} packs of {item}.",
    ),
}


def format_call(tool: str, arguments: Mapping[str, str]) -> str:
    """The call as text, such as ``alarm(day="Monday", time="7 am")``."""
    inside = ", ".join(f'{name}="{arguments[name]}"' for name in PARAMETERS[tool])
    return f"{tool}({inside})"


def _requests(tool: str, template: str, split: Split, rng: random.Random) -> Iterator[Request]:
    """All requests of one template that belong to the split."""
    for arguments in fillings(template, VALUES, rng):
        request = template.format_map(arguments)
        if split_of(request) == split:
            yield Request(request, format_call(tool, arguments), template)


generate_tool_call = InstructedTask("tool_call", REQUESTS, INSTRUCTIONS, _requests).generate
"""Rows whose answer is one call of a tool in :data:`PARAMETERS`."""
