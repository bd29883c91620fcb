"""Routing: name the team that should read a customer's message.

The eight team names are in the prompt, always in the same order. The untrained model answers
the customer instead of naming a team.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from sdft.tasks.generated.row_sampling import (
    InstructedTask,
    Request,
    Split,
    fillings,
    split_of,
)
from sdft.types import Demonstration

INSTRUCTIONS: tuple[str, ...] = (
    "{message}\nTeam ({teams}):",
    "{message}\nWhich team ({teams})?",
    "{message}\nOne team only ({teams}):",
    "Customer: {message}\nTeam ({teams}):",
    "Customer: {message}\nWhich team ({teams})?",
    "Message: {message}\nThe team for it ({teams}):",
)

SLOTS: dict[str, tuple[str, ...]] = {
    "product": (
        "kettle", "lamp", "desk chair", "blender", "backpack", "tent", "printer", "headset",
        "keyboard", "camera", "toaster", "bicycle", "watch", "radio", "vacuum cleaner", "monitor",
        "speaker", "heater", "drill", "coffee machine", "tablet", "fan", "phone", "shaver",
        "sewing machine", "rice cooker", "freezer", "scooter", "lawn mower", "laptop",
    ),
    "garment": (
        "jacket", "dress", "sweater", "raincoat", "shirt", "hat", "skirt", "hoodie", "suit",
        "scarf", "belt", "coat", "swimsuit", "blazer", "vest", "cardigan", "poncho", "robe", "cap",
        "tie", "polo shirt", "parka", "blouse", "tracksuit",
    ),
    "amount": (
        "$9", "$12", "$15", "$19", "$24", "$30", "$38", "$45", "$52", "$60", "$64", "$75", "$80",
        "$87", "$99", "$120", "$150", "$210", "$250", "$320",
    ),
    "past": (
        "yesterday", "this morning", "last week", "last night", "two days ago", "last month",
        "on Monday", "on Tuesday", "on Wednesday", "on Thursday", "on Friday", "on Saturday",
        "on Sunday", "a week ago", "in May", "in June", "in March", "three days ago",
    ),
    "weekday": (
        "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
    ),
    "hour": (
        "8 am", "9 am", "10 am", "11 am", "noon", "1 pm", "2 pm", "3 pm", "4 pm", "5 pm", "6 pm",
        "7 pm",
    ),
    "city": (
        "Oslo", "Lyon", "Porto", "Dublin", "Vienna", "Turin", "Leeds", "Boston", "Denver", "Kyoto",
        "Lima", "Cairo", "Delhi", "Perth", "Prague", "Madrid", "Athens", "Geneva", "Austin",
        "Toronto", "Naples", "Berlin", "Zurich", "Seattle", "Hamburg",
    ),
    "job": (
        "driver", "designer", "cook", "tailor", "nurse", "translator", "painter", "chemist",
        "receptionist", "data analyst", "warehouse worker", "web developer", "gardener", "cashier",
        "sales assistant", "mechanic", "barista", "security guard", "project manager", "baker",
        "librarian", "plumber", "bookkeeper", "welder",
    ),
    "outlet": (
        "the Daily Post", "Radio North", "the Evening Star", "Channel 5", "City Weekly",
        "the Herald", "Tech Monthly", "the Sunday Mail", "Green Magazine", "the Local Times",
        "Morning TV", "the Observer", "Trade Journal", "the Gazette", "Market Watch",
        "Science Today", "Style Review", "the Courier", "Radio Seven", "the Business Report",
    ),
    "visit": (
        "a haircut", "an eye test", "a massage", "a table for two", "a guitar lesson",
        "a dental check-up", "a city tour", "a swimming class", "a fitting", "a double room",
        "a tennis court", "a yoga class", "a cooking class", "a boat trip", "a wine tasting",
        "a photo shoot", "a driving lesson", "a meeting room", "a table for six", "a pottery class",
    ),
    "site": (
        "my account", "the app", "the website", "my profile", "the customer portal",
        "the member area", "my dashboard", "the mobile app", "the web shop", "the support portal",
        "the online shop", "the club page", "the student portal", "the partner site",
    ),
}  # fmt: skip

# Team name, as it stands in the prompt -> how its customers write.
TEAMS: dict[str, tuple[str, ...]] = {
    "payments": (
        "I was charged {amount} twice for the same {product}.",
        "Why is there an extra {amount} on my invoice?",
        "My card was declined when I tried to pay for the {product}.",
        "You took {amount} from my bank account {past} and I don't know why!",
        "Could you send me the invoice for the {product} I paid {past}?",
        "I was billed {amount}, but the price tag on the {product} said less.",
        "hi, can i pay for the {product} in installments?",
        "There is a {amount} fee on my statement that I never agreed to.",
        "The discount was not taken off my bill of {amount}.",
        "I paid {amount} {past} but the bill still shows as unpaid.",
        "Please explain the tax of {amount} on my last bill.",
        "Can I pay the {amount} by bank transfer instead of by card?",
        "My receipt for the {product} shows the wrong amount, {amount}.",
        "So I am being billed {amount} every month now? Nobody told me.",
    ),
    "parcels": (
        "My {product} was meant to be delivered {past}. Where is it?",
        "The tracking page for my {product} has not changed since {weekday}.",
        "Can the courier leave my parcel with a neighbour in {city}?",
        "How long does shipping to {city} take?",
        "the driver left my {product} out in the rain {past}...",
        "Tracking says delivered {past}, but no parcel ever came.",
        "Please ship the {product} to my office in {city} instead.",
        "My package has been stuck at the depot in {city} for days.",
        "Do you deliver to {city} on weekends?",
        "I was out {past} and missed the courier. When will he try again?",
        "The {product} I ordered {past} still hasn't been shipped!",
        "Which courier is bringing the {product}, and at what time?",
        "My parcel went to {city} by mistake. That is the wrong address.",
        "Could the delivery of my {product} wait until {weekday}?",
    ),
    "returns": (
        "The {garment} I bought {past} is too small. I want to send it back.",
        "How do I exchange my new {garment} for a bigger size?",
        "I changed my mind about the {garment} and would like my money back.",
        "Where can I print a return label for the {product}?",
        "wrong color! i ordered a red {garment}, please swap it",
        "Is it too late to give back the {garment} I got {past}?",
        "I sent the {garment} back {past}. Has my refund been approved?",
        "The {garment} doesn't suit me at all. Can I return it?",
        "Can I hand back an unopened {product} at your shop in {city}?",
        "It was a gift, but I'd like to swap the {garment} for a {product}.",
        "How many days do I have to return a {product} I don't need?",
        "Please refund me, the {garment} looks nothing like the picture.",
        "Do I need the original box to send back the {product}?",
        "I don't want the {product} any more and would like to return it.",
    ),
    "login": (
        "I forgot my password for {site}.",
        "{site} says my username does not exist.",
        "No code arrives when I sign in to {site}.",
        "I have been locked out of {site} since {weekday}.",
        "my password stopped working {past} and i cannot get into {site}",
        "How do I reset my password? {site} won't let me in.",
        "I got a new phone {past} and now I can't log in to {site}.",
        "The sign-in page of {site} keeps sending me back to the start.",
        "Why does {site} reject my password every time?",
        "The password link you sent me {past} for {site} has expired.",
        "I can't remember which e-mail I use to sign in to {site}.",
        "Too many wrong passwords, and now {site} has blocked me!",
        "Please unlock my user name, I can't log in to {site}.",
        "The captcha on {site} never accepts me, so I can't sign in.",
    ),
    "repair": (
        "My {product} stopped working {past}.",
        "The {product} makes a loud noise and then switches itself off.",
        "Can someone fix my broken {product}?",
        "The screen of my {product} is cracked. Can you mend it?",
        "my {product} won't turn on any more, help",
        "There is smoke coming out of the {product} since {weekday}!",
        "Do you still have spare parts for an old {product}?",
        "The button on my {product} broke off {past}. Is that covered?",
        "How much would it cost to have a {product} fixed in {city}?",
        "A cable of my {product} is loose. Could a technician look at it?",
        "I dropped the {product} {past} and now it only blinks.",
        "The motor of my {product} burned out after a year.",
        "Is my {product} still under warranty? It broke {past}.",
        "Your technician fixed my {product} {past}, but it is broken again.",
    ),
    "booking": (
        "I'd like to reserve {visit} for {weekday}.",
        "Is there a free slot for {visit} at {hour}?",
        "Please cancel my reservation for {visit} on {weekday}.",
        "Can I move my appointment to {weekday} at {hour}?",
        "We booked {visit} but now there is one more person.",
        "do you have anything free on {weekday} for {visit}?",
        "I need to push back {visit} from {hour} to {weekday}.",
        "Can you confirm my reservation for {visit} at {hour}?",
        "We will be late for {visit} at {hour}. Is that all right?",
        "Could I book {visit} in {city} for {weekday}?",
        "Which day next week still has room for {visit}?",
        "I'd love to book {visit} for my mother's birthday on {weekday}.",
        "Please put me on the waiting list for {visit} on {weekday}.",
        "I reserved {visit} {past} but never got a confirmation.",
    ),
    "careers": (
        "Are you hiring a {job} in {city}?",
        "I'd like to send you my CV for the {job} position.",
        "When will I hear back about my interview for the {job} job?",
        "What does a {job} earn at your company?",
        "I applied to be a {job} {past}. Has anyone read my application?",
        "do you take interns in {city}? i want to become a {job}",
        "I'm an experienced {job} looking for work in {city}.",
        "Is the {job} vacancy in {city} still open?",
        "Could I work for you part-time as a {job}?",
        "My job interview is on {weekday} at {hour}. Whom should I ask for?",
        "Do you train people who want to work as a {job}?",
        "Who should I address my cover letter to for the {job} role?",
        "I would love to join your company as a {job}.",
        "Is a degree required for the {job} opening?",
    ),
    "press": (
        "I write for {outlet} and would like to interview your director.",
        "{outlet} would like a quote about your new shop in {city}.",
        "Could {outlet} film in your store on {weekday}?",
        "I'm a reporter at {outlet}. Who can comment on the news?",
        "Please send your latest press release to {outlet}.",
        "hello, journalist from {city} here, need a statement by {hour}",
        "{outlet} is preparing a story about your company. Can we talk?",
        "May {outlet} print the photo of your founder?",
        "Our article for {outlet} needs a comment from your boss by {weekday}.",
        "Can a journalist attend your opening in {city} on {weekday}?",
        "I'm making a documentary for {outlet} about your factory.",
        "{outlet} published a mistake about you. Who is your spokesperson?",
        "Would your founder join a live show on {outlet} on {weekday}?",
        "I edit {outlet}. Where can I find your logo and media kit?",
    ),
}


def _requests(team: str, template: str, split: Split, rng: random.Random) -> Iterator[Request]:
    """All messages of one template that belong to the split."""
    for filling in fillings(template, SLOTS, rng):
        message = template.format_map(filling)
        message = message[0].upper() + message[1:] if template.startswith("{") else message
        if split_of(message) == split:
            yield Request(message, team, template)


def _ask(instruction: str, message: str) -> str:
    return instruction.format(message=message, teams=", ".join(TEAMS))


ROUTING = InstructedTask("routing", TEAMS, INSTRUCTIONS, _requests, _ask)


def generate_routing(
    split: Split, num_rows: int, seed: int = 0, team: int | None = None
) -> list[Demonstration]:
    """Rows whose answer is the one team of :data:`TEAMS` that a message is for.

    Args:
        split: ``"train"``, ``"validation"`` or ``"test"``.
        num_rows: How many rows.
        seed: Chooses and orders messages and instructions.
        team: Only messages for this team, by its index from 0: a task with one answer, which even a
            tiny model learns. None is for all teams.

    Raises:
        ValueError: Unknown split or team, or more rows asked for than there are.
    """
    if team is None:
        return ROUTING.generate(split, num_rows, seed)
    if not 0 <= team < len(TEAMS):
        raise ValueError(f"team is {team}; it must lie between 0 and {len(TEAMS) - 1}")
    name = list(TEAMS)[team]
    return replace(ROUTING, templates={name: TEAMS[name]}).generate(split, num_rows, seed)
