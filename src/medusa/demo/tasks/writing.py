"""Writing tasks: a short story about a person, a city and an object; there is no checker."""

from __future__ import annotations

import random

from .task import Pool, Split, Task
from .values import CITIES, FIRST_NAMES, PRODUCTS

_ASK = Pool(
    ["Write a short story", "Tell me a story", "Please write a little tale", "Make up a story", "I would like a story",
     "Invent a small tale", "Compose a short story", "Give me a bedtime story", "Could you tell a tale",
     "Write a few sentences", "Create a short tale", "Imagine a story", "Tell a brief story", "Write a mini story",
     "Can you write a story", "Narrate a short story", "Spin a tale", "Let me hear a story", "I want a tale",
     "Draft a short story"],
    held_out=0.25,
)  # fmt: skip
_WITH = Pool(
    ["about {hero} from {city} and a {thing}.", "with {hero}, {city} and a {thing} in it.",
     "in which {hero} finds a {thing} in {city}.", "where {hero} lives in {city} and owns a {thing}.",
     "set in {city}, with {hero} and a {thing}.", "on {hero}, who meets a {thing} in {city}.",
     "for my children about a {thing}, {hero} and {city}.", "starring {hero} in {city} with a {thing}."],
    held_out=0.25,
)  # fmt: skip
_ADJECTIVES = (
    "old small strange golden broken heavy shiny quiet red blue dusty curious wooden tiny".split()
)
_MOODS = [
    "happy",
    "curious",
    "tired",
    "brave",
    "nervous",
    "cheerful",
    "lonely",
    "proud",
    "calm",
    "restless",
]
_ANIMALS = [
    "cat",
    "dog",
    "crow",
    "fox",
    "hedgehog",
    "goat",
    "horse",
    "owl",
    "mouse",
    "swan",
    "rabbit",
    "turtle",
]
_WEATHER = ["rainy", "sunny", "windy", "foggy", "snowy", "warm", "cold", "stormy"]
_TIMES = [
    "morning",
    "evening",
    "afternoon",
    "night",
    "Sunday",
    "Monday",
    "winter day",
    "summer day",
]
_PLACES = (
    "market harbour library station bridge park bakery museum tower garden theatre school".split()
)
_PEOPLE = [
    "baker",
    "teacher",
    "sailor",
    "stranger",
    "child",
    "doctor",
    "painter",
    "neighbour",
    "gardener",
    "musician",
]

# Possible sentences for each position of a story.
_SENTENCES = [
    ["On a {weather} {time}, {hero} walked through {city}.", "One {weather} {time}, {hero} left home early.",
     "It was a {weather} {time} in {city}.", "{hero} had lived in {city} for many years.",
     "Nobody in {city} knew {hero} better than the {person}.", "In {city} there lived a {mood} {person} called {hero}.",
     "Every {time}, {hero} went to the {place} of {city}.", "{city} was {weather} that {time}, and {hero} felt {mood}."],
    ["Near the {place} lay a {adjective} {thing}.", "There {hero} found a {adjective} {thing}.",
     "A {person} sold {hero} a {adjective} {thing}.", "Under a bench {hero} saw a {adjective} {thing}.",
     "Behind the {place} stood a {adjective} {thing}.", "A {animal} was sitting on a {adjective} {thing}.",
     "The {person} had lost a {adjective} {thing}.", "Someone had left a {adjective} {thing} at the {place}."],
    ["\"Whose {thing} is this?\" asked {hero}.", "{hero} felt {mood} and picked up the {thing}.",
     "The {thing} began to hum a {mood} song.", "\"Take it,\" said a {mood} {person}.",
     "{hero} looked at the {thing} for a long time.", "Inside the {thing} was a letter to the {person}.",
     "A {adjective} {animal} wanted the {thing} too.", "The {thing} was warm, as if it were alive."],
    ["So {hero} carried it to the {place}.", "Together with a {animal}, {hero} went to the {place}.",
     "The {person} at the {place} only smiled.", "At the {place} a {mood} {person} was waiting.",
     "{hero} followed a {adjective} {animal} to the {place}.", "All the way to the {place} it was {weather}.",
     "The {animal} ran off towards the {place}.", "Then {hero} asked the {person} at the {place} for help."],
    ["\"This {thing} belongs to the whole of {city},\" said the {person}.", "The {person} repaired the {thing} at once.",
     "There the {thing} showed {hero} a {adjective} door.", "The {animal} told {hero} the secret of the {thing}.",
     "Suddenly the {thing} turned into a {adjective} {animal}.", "The {person} gave {hero} a {adjective} coin for it.",
     "{hero} put the {thing} in the middle of the {place}.", "In the end {hero} gave the {thing} to the {person}."],
    ["Since that {time}, {hero} is never {mood} without a reason.", "And {hero} went home, {mood} and tired.",
     "From then on they were friends.", "The people of {city} still talk about it.",
     "{hero} never forgot that {weather} {time}.", "That is why {city} has a {adjective} {thing} at its {place}.",
     "The {thing} is still there, and so is the {animal}.", "Then it was {time}, and {hero} fell asleep."],
]  # fmt: skip


def make(rng: random.Random, split: Split) -> Task:
    """Return a random writing task."""
    named = {
        "hero": FIRST_NAMES.pick(rng, split),
        "city": CITIES.pick(rng, split),
        "thing": PRODUCTS.pick(rng, split),
    }
    story = []
    for sentences in _SENTENCES:
        details = {
            "weather": rng.choice(_WEATHER),
            "time": rng.choice(_TIMES),
            "adjective": rng.choice(_ADJECTIVES),
            "mood": rng.choice(_MOODS),
            "animal": rng.choice(_ANIMALS),
            "place": rng.choice(_PLACES),
            "person": rng.choice(_PEOPLE),
        }
        story.append(rng.choice(sentences).format(**named, **details))
    prompt = f"{_ASK.pick(rng, split)} {_WITH.pick(rng, split).format(**named)}"
    return Task("writing", prompt, " ".join(story), dict(named))
