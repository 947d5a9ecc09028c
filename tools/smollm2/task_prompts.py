"""Requests as people send them to an assistant, made from seeds; none is taken from a benchmark.

A model that asks itself questions asks few of these kinds: it hardly plays a role, reasons, or
reads a text that the user gives.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterator

from .different import different

SLOTS = {
    "place": (
        *("Lisbon", "the Scottish Highlands", "Kyoto", "a small island in Greece", "Marrakesh"),
        *("the Dolomites", "Buenos Aires", "a village in Norway", "the Mekong delta", "Istanbul"),
        *("a night train through Poland", "the coast of Maine", "Cape Town", "the Atacama desert"),
    ),
    "person": (
        *("a retired sailor", "a young chemist", "a strict librarian", "a travelling musician"),
        *("a mountain guide", "a school teacher", "a night watchman", "a baker with a secret"),
        *("an old clockmaker", "a nervous astronaut", "a gardener", "a detective who hates rain"),
    ),
    "role": (
        *("a patient physics teacher", "a ship's captain", "a sports commentator", "a chef"),
        *("a medieval blacksmith", "a kind doctor", "a tour guide", "a lawyer", "a grumpy robot"),
        *("a news presenter", "a personal trainer", "a bank adviser", "a wise grandmother"),
        *("a software architect", "a wildlife photographer", "a museum guide", "a job coach"),
    ),
    "thing": (
        *("a solar lamp", "a folding bicycle", "a language course", "a reusable bottle", "a tent"),
        *("a note-taking app", "a community garden", "a coffee grinder", "an online bookshop"),
        *("noise-cancelling headphones", "a local theatre", "a cooking class", "a water filter"),
    ),
    "event": (
        *("a late delivery", "a birthday party", "a job interview", "a meeting next Tuesday"),
        *("a broken washing machine", "a school trip", "a price increase", "a lost suitcase"),
        *("a team lunch", "a power cut", "moving to another city", "a charity run"),
    ),
    "science": (
        *("photosynthesis", "plate tectonics", "how vaccines work", "the greenhouse effect"),
        *("the water cycle", "natural selection", "electromagnetic induction", "black holes"),
        *("how a refrigerator works", "the pH scale", "DNA replication", "friction", "entropy"),
        *("the Doppler effect", "semiconductors", "osmosis", "the immune system", "batteries"),
        *("neural networks", "public-key encryption", "radioactive decay", "how aeroplanes fly"),
    ),
    "society": (
        *("the French Revolution", "inflation", "the Silk Road", "the printing press", "democracy"),
        *("the Cold War", "supply and demand", "stoicism", "the Renaissance", "urbanisation"),
        *("international trade", "freedom of speech", "the Roman Republic", "minimum wages"),
        *("utilitarianism", "the history of money", "globalisation", "the Bauhaus", "taxes"),
    ),
    "debate": (
        *("working from home", "electric cars", "school uniforms", "nuclear power", "zoos"),
        *("social media for teenagers", "a four-day week", "homework", "tourism", "fast fashion"),
    ),
    "audience": (
        *("a ten-year-old", "a beginner", "a business audience", "someone who dislikes maths"),
        *("a class of students", "my grandparents", "an expert in another field"),
    ),
    "style": (
        *("in two paragraphs", "in a friendly tone", "with an example", "as a short list"),
        *("in simple words", "with a surprising ending", "in about 150 words", "step by step"),
        *("in a formal tone", "with three headings", "as a dialogue", "in the first person"),
    ),
    "name": ("Anna", "Jonas", "Priya", "Miguel", "Chen", "Fatima", "Lucas", "Ingrid", "Omar"),
    "other": ("Emma", "Felix", "Yuki", "Nadia", "Tom", "Clara", "Ravi", "Sofia", "Peter"),
    "object": ("apples", "books", "marbles", "tickets", "pencils", "stamps", "cards", "shells"),
    "small": tuple(str(number) for number in range(2, 13)),
    "large": tuple(str(number) for number in range(15, 96, 5)),
}
"""Words that fill the gaps of forms, by the name of the gap."""

FORMS = {
    "writing": (
        "Write a travel article about {place}, {style}.",
        "Write the first paragraph of a story about {person} in {place}.",
        "Draft an email to a colleague about {event}, {style}.",
        "Write an advertisement for {thing}, {style}.",
        "Describe {place} at dawn so that the reader can hear and smell it.",
        "Write a short poem about {person}.",
        "Write a letter of complaint about {event}.",
        "Rewrite this more politely: 'Tell me at once what happens about {event}.'",
        "Write a review of {thing} that is honest but kind.",
        "Suggest five titles for a story about {person} and {event}.",
        "Write a persuasive speech about {debate}, {style}.",
    ),
    "roleplay": (
        "Pretend to be {role}. A visitor asks you about {science}. What do you say?",
        "You are {role}. Answer all questions in that voice. What is your opinion of {debate}?",
        "Imagine that you are {role}. Describe a day in your life, {style}.",
        "Act as {role} and help me to prepare for {event}.",
        "Speak like {role}. Explain {science} to {audience}.",
        "You are {role} and I am {person}. Begin a conversation about {event}.",
    ),
    "explaining": (
        "What is {science}, and why does it matter?",
        "Explain {science} to {audience}.",
        "Explain {science} {style}.",
        "What are the causes and consequences of {society}?",
        "Compare {society} with {society2}.",
        "Explain {society} to {audience}, {style}.",
        "Which common mistakes do people make about {science}?",
        "Give three arguments for and three against {debate}.",
        "How would you design an experiment about {science}?",
        "How has {society} changed everyday life? Give specific examples.",
        "Write an outline of a lesson on {society} for {audience}.",
    ),
    "reasoning": (
        "{name} is older than {other}, and {other} is older than Kim. Who is the youngest? "
        "Explain your answer.",
        "{name} has {large} {object} and gives {small} to {other}. {other} then has twice as many "
        "as before. How many {object} does each of them have now?",
        "If all {object} in a box are red and {name} takes {small} of the {object} from it, can "
        "{name} have a blue one? Why?",
        "{name} walks {small} kilometres north and {small2} kilometres east. How far is the way "
        "straight back?",
        "A ticket costs {large} euros. {name} buys {small} tickets and pays with {large2} euros "
        "each time. What can you say about the change?",
        "A train needs {small} hours for {large}0 kilometres. How long does it need for {large2}0?",
        "{name} sits left of {other}, and Kim sits left of {name}. Who sits on the right?",
        "Solve for x: {small}x + {large} = {large2}. Show each step.",
        "What is {small}% of {large}00? Explain how you found it.",
        "A rectangle is {small} metres wide and {large} metres long. What are its area and its "
        "perimeter?",
    ),
}
"""Forms of requests, by their kind."""

GOODS = ("lamps", "chairs", "notebooks", "bicycles", "teapots", "jackets", "clocks", "rugs")
TOWNS = ("Lyon", "Hamburg", "Porto", "Krakow", "Oslo", "Ghent", "Turin", "Cork", "Graz")
MONTHS = ("January", "March", "April", "June", "August", "October", "December")
SENTENCES = (
    "{name} bought {count} {goods} for {price} euros in {town} on {day} {month}.",
    "On {day} {month} the shop in {town} sold {count} {goods} to {name} for {price} euros.",
    "{name} from {town} returned {count} {goods}, worth {price} euros, in {month}.",
    "In {month}, {name} ordered {count} {goods} for {price} euros; they were sent to {town}.",
)
TASKS = (
    "List the names in this text in alphabetical order:",
    "Extract the names, goods and prices from this text as a JSON list:",
    "Make a table with the columns name, town and price from this text:",
    "Which purchase in this text was the most expensive, and who made it?",
    "Turn this text into CSV with one line a purchase:",
    "How many towns does this text mention, and which?",
    "Summarise this text in one sentence:",
    "For each person in this text, say when they bought what, as bullet points:",
)


def task_prompts(count: int, seed: int = 0) -> Iterator[str]:
    """Yield different requests; the same ones for the same seed.

    Raises:
        ValueError: there are not so many.
    """
    return different(_prompt, count, seed)


def _prompt(rng: random.Random) -> str:
    kind = rng.choice([*FORMS, "extraction"])
    return _extraction(rng) if kind == "extraction" else _filled(rng, rng.choice(FORMS[kind]))


def _filled(rng: random.Random, form: str) -> str:
    """Return a form with all gaps filled; a gap {thing2} gets another word than {thing}."""
    words: dict[str, str] = {}
    for _, gap, _, _ in string.Formatter().parse(form):
        if gap is not None and gap not in words:
            kind = gap.removesuffix("2")
            words[gap] = rng.choice([each for each in SLOTS[kind] if each != words.get(kind)])
    return form.format(**words)


def _extraction(rng: random.Random) -> str:
    """Return a task about a text, and the text."""
    sentences = [
        rng.choice(SENTENCES).format(
            name=name,
            count=rng.randint(2, 40),
            goods=rng.choice(GOODS),
            price=rng.randint(20, 900),
            town=rng.choice(TOWNS),
            day=rng.randint(1, 28),
            month=rng.choice(MONTHS),
        )
        for name in rng.sample(SLOTS["name"] + SLOTS["other"], rng.randint(3, 5))
    ]
    return f"{rng.choice(TASKS)}\n\n{' '.join(sentences)}"
