"""Tool call: write the one call that a request asks for.

The tools and their parameters are not in the prompt: they are learned from demonstrations. Each
argument is copied from the request word for word, and arguments stand in the tool's own order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from sdft.generated.sampling import (
    Split,
    balanced,
    check_split,
    fields_of,
    fillings,
    round_robin,
    seeded_random,
    split_of,
    take,
)
from sdft.types import Demonstration

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
        "tomorrow", "tonight",
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
        "cathedral", "courthouse", "park", "cinema",
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
        "pasta", "tea", "eggs", "laundry", "rice", "pizza", "bread", "yoga", "homework", "cake",
        "coffee", "exercise", "reading", "practice", "soup", "cookies",
    ),
    "item": (
        "milk", "eggs", "bread", "butter", "rice", "apples", "honey", "soap", "tea", "cheese",
        "carrots", "flour", "salt", "oat milk", "bananas", "paper towels", "yogurt", "batteries",
        "candles", "tomatoes", "lemons", "pasta", "onions", "olive oil", "cereal", "toothpaste",
        "potatoes", "dog food", "garlic", "pepper", "orange juice", "peanut butter",
    ),
    "amount": (
        "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "14", "15", "16", "18",
        "20", "24",
    ),
}  # fmt: skip

# Tool name -> requests for it; the fields are the parameters.
TOOLS: dict[str, tuple[str, ...]] = {
    "set_alarm": (
        "Wake me up at {time} on {day}.",
    ),
}
