"""Extraction tasks: turn a short text into a JSON object.

The text is about a person, an invoice, an event or a parcel.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from .task import Pool, Split, Task
from .values import CITIES, PRODUCTS, TOPICS, company, date, name, phrase

Facts = dict[str, Any]

_ASK = Pool(
    ["Extract the facts from this text", "Read the text and pull out the facts", "Turn the text below into JSON",
     "Please convert this note to JSON", "Give me the data in this message", "I need the details of this text",
     "Could you extract the details below?", "What are the facts here?", "Summarise the following as data",
     "Parse the following text", "Fill in a JSON record from the text", "Make a record of this note",
     "Can you structure this message for me?", "List what the text says as JSON", "Collect the facts below",
     "Find the fields in this passage", "Write the data of this passage", "Get the details out of this email",
     "Help me structure this paragraph", "Transform the paragraph into data"],
    held_out=0.25,
)  # fmt: skip
_FORMAT = Pool(
    ["as a JSON object.", "and answer with JSON only.", "in JSON.", "and reply in JSON format.", "Return a JSON object.",
     "Output JSON.", "JSON please.", "Answer with one JSON object."],
    held_out=0.25,
)  # fmt: skip
_KEYS = Pool(
    ["Use the keys", "Keys:", "Fields:", "The fields are", "It should have the keys", "Include"],
    held_out=0.2,
)
_ROLES = Pool(
    """engineer nurse teacher architect baker chemist designer driver editor farmer gardener guide lawyer librarian
        mechanic musician painter pilot plumber surgeon tailor translator analyst curator dentist""".split(),
    held_out=0.0,
)
_EVENTS = Pool(
    """workshop lecture concert exhibition seminar course meeting tour class festival""".split(),
    held_out=0.0,
)

_PERSON = Pool(
    ["{name} is a {age} year old {job} from {city}. After work, {name} likes {hobby} and works for {company}.",
     "Meet {name}, {age}, a {job} who lives in {city}. {company} is the employer, and the hobby is {hobby}.",
     "At {company} you will find {name}. This {job} is {age} years old, lives in {city} and loves {hobby}.",
     "Our new {job} is called {name}. Born and raised in {city}, now {age} years old, {name} joins {company} and enjoys "
     "{hobby}.",
     "I spoke with {name} today. The {job} from {city} turned {age} this year, is fond of {hobby} and is paid by "
     "{company}.",
     "{company} has hired {name} as {job}. The new colleague is {age}, comes from {city} and spends weekends on {hobby}.",
     "From {city} comes {name}, {job} at {company}. Age: {age}. Favourite pastime: {hobby}.",
     "You asked about {name}. As far as I know the age is {age}, the trade is {job}, the home is {city}, the firm is "
     "{company} and the passion is {hobby}.",
     "{name} ({age}) moved to {city} to work as a {job} for {company}. In the evening there is time for {hobby}.",
     "There is a {job} in {city} named {name}. {name} is {age} years old, works at {company} and talks about {hobby} all "
     "day."],
)  # fmt: skip
_INVOICE = Pool(
    ["Invoice {number} was issued by {company} on {date}. It lists {items}. The total is {total} dollars.",
     "On {date} we received invoice {number} from {company}. We ordered {items}, {total} dollars in all.",
     "{company} sent us invoice {number}, dated {date}, for {items}. Please pay {total} dollars.",
     "Dear customer, this is invoice {number} of {date}. You bought {items} from {company}. Amount due: {total} dollars.",
     "Please book invoice {number}: {company}, {date}. Items: {items}. Sum: {total} dollars.",
     "For {items} we owe {company} {total} dollars. The invoice has number {number} and the date {date}.",
     "The bill from {company} arrived. It is dated {date}, carries the number {number} and covers {items}. It comes to "
     "{total} dollars.",
     "Bought from {company} on {date}: {items}. Invoice {number}, {total} dollars.",
     "{total} dollars are due to {company} for {items}. See invoice {number} of {date}.",
     "I am looking at invoice {number}. The seller is {company}, the day is {date}, the goods are {items} and the total "
     "is {total} dollars."],
)  # fmt: skip
_EVENT = Pool(
    ["A {kind} on {topic} will take place in {city} on {date}. The speaker is {name} and {seats} seats are available.",
     "Join us in {city} on {date} for a {kind} about {topic} with {name}. There are {seats} seats.",
     "{name} gives a {kind} on {topic}. It is on {date} in {city}, with room for {seats} people.",
     "Save the date: {date}, {city}. {name} leads our {kind} on {topic}. Only {seats} places!",
     "The {kind} about {topic} by {name} has been moved to {date}. The place is still {city}; {seats} seats are left.",
     "In {city} there will be a {kind} on {topic}. Date: {date}. Host: {name}. Seats: {seats}.",
     "On {date}, {name} comes to {city}. The {kind} deals with {topic} and up to {seats} guests may attend.",
     "We booked a hall with {seats} seats in {city}. There, on {date}, {name} holds a {kind} on {topic}.",
     "Do you like {topic}? Then do not miss the {kind} with {name} in {city} on {date}. We have {seats} seats.",
     "{seats} people can attend the {kind} on {topic} that {name} is planning. It happens in {city} on {date}."],
)  # fmt: skip
_PARCEL = Pool(
    ["Parcel {number} with {quantity} {product} left {city} on {date}. {name} will get it from {company}.",
     "{company} has shipped {quantity} {product} to {name}. Parcel {number} started in {city} on {date}.",
     "On {date} the parcel {number} was sent from {city}. It holds {quantity} {product} for {name}, carried by {company}.",
     "{name} is waiting for {quantity} {product}. They are in parcel {number}, which {company} took over in {city} on "
     "{date}.",
     "Tracking: parcel {number}, from {city}, {date}. Content: {quantity} {product}. Carrier: {company}. Receiver: "
     "{name}.",
     "Please tell {name} that parcel {number} is under way. {company} picked up the {quantity} {product} in {city} on "
     "{date}.",
     "The {quantity} {product} for {name} travel in parcel {number}. It left {city} on {date} with {company}.",
     "We gave {company} a parcel in {city} on {date}. The number is {number}, inside are {quantity} {product}, and it "
     "goes to {name}.",
     "Good news, {name}! Your {quantity} {product} were posted in {city} on {date}. {company} delivers parcel {number}.",
     "From {city}, {date}: {company} accepted parcel {number}, {quantity} {product}, addressed to {name}."],
)  # fmt: skip


def _person(rng: random.Random, split: Split) -> tuple[str, Facts]:
    """Return a text about a person, and the facts in it."""
    facts = {
        "name": name(rng, split),
        "age": rng.randint(18, 79),
        "job": _ROLES.pick(rng, split),
        "city": CITIES.pick(rng, split),
        "company": company(rng, split),
        "hobby": TOPICS.pick(rng, split),
    }
    return _PERSON.pick(rng, split).format(**facts), facts


def _invoice(rng: random.Random, split: Split) -> tuple[str, Facts]:
    """Return a text about an invoice, and the facts in it."""
    items = [
        {"product": product, "quantity": rng.randint(2, 99), "price": rng.randint(2, 99)}
        for product in PRODUCTS.sample(rng, split, rng.randint(1, 3))
    ]
    words = [f"{item['quantity']} x {item['product']} at {item['price']} dollars" for item in items]
    listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    total = sum(int(str(item["quantity"])) * int(str(item["price"])) for item in items)
    facts: Facts = {
        "number": rng.randint(1000, 9999),
        "company": company(rng, split),
        "date": date(rng),
        "total": total,
    }
    return _INVOICE.pick(rng, split).format(items=listed, **facts), {**facts, "items": items}


def _event(rng: random.Random, split: Split) -> tuple[str, Facts]:
    """Return a text about an event, and the facts in it."""
    facts = {
        "kind": _EVENTS.pick(rng, split),
        "topic": TOPICS.pick(rng, split),
        "city": CITIES.pick(rng, split),
        "date": date(rng),
        "name": name(rng, split),
        "seats": rng.randint(10, 400),
    }
    return _EVENT.pick(rng, split).format(**facts), facts


def _parcel(rng: random.Random, split: Split) -> tuple[str, Facts]:
    """Return a text about a parcel, and the facts in it."""
    facts = {
        "number": rng.randint(10000, 99999),
        "name": name(rng, split),
        "city": CITIES.pick(rng, split),
        "date": date(rng),
        "company": company(rng, split),
        "product": PRODUCTS.pick(rng, split),
        "quantity": rng.randint(2, 99),
    }
    return _PARCEL.pick(rng, split).format(**facts), facts


_KINDS: tuple[Callable[[random.Random, Split], tuple[str, Facts]], ...] = (
    _person,
    _invoice,
    _event,
    _parcel,
)


def make(rng: random.Random, split: Split) -> Task:
    """Return a random extraction task."""
    text, facts = rng.choice(_KINDS)(rng, split)
    keys = f"{_KEYS.pick(rng, split)} {', '.join(facts)}."
    ask = phrase(rng, split, _ASK, _FORMAT)
    parts = [ask, keys, text] if rng.random() < 0.7 else [text, ask, keys]
    return Task("extraction", "\n".join(parts), json.dumps(facts, indent=2), {"expected": facts})


def check(task: Task, text: str) -> bool:
    """Return True if the text is exactly the expected JSON object."""
    body = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
    try:
        return bool(json.loads(body) == task.facts["expected"])
    except (ValueError, RecursionError):
        return False
