"""Math tasks: word problems with three or four steps, solved line by line.

All numbers are at most 100, and products are of the small multiplication table, so that the tasks
test the steps rather than large arithmetic.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import NamedTuple

from .task import Pool, Split, Task
from .values import FIRST_NAMES, PRODUCTS

_ASK = Pool(
    ["Solve this step by step.", "Show your steps.", "Work it out step by step.", "Please show the work.",
     "Explain each step.", "Write down every step.", "Solve the problem.", "Think step by step.", "Do the math.",
     "Let me see the calculation.", "Calculate carefully.", "Answer with the steps.", "Give the steps and the answer.",
     "Help me solve this.", "Can you work this out?", "Reason in steps.", "Take it one step at a time.",
     "Go through it step by step.", "Find the answer and show how.", "What is the answer?"],
    held_out=0.25,
)  # fmt: skip
_INTRO = Pool(
    ["", "Here is a problem.", "A question for you:", "Homework:", "Consider this.", "My teacher asks:", "A riddle:",
     "Exercise:"],
    held_out=0.25,
)  # fmt: skip


class Problem(NamedTuple):
    """A word problem.

    Attributes:
        text: the problem.
        lines: the solution, one step a line.
        answer: the final number.
    """

    text: str
    lines: list[str]
    answer: int


def _factors(rng: random.Random) -> tuple[int, int]:
    """Return two random factors from 2 to 9."""
    return rng.randint(2, 9), rng.randint(2, 9)


def _shopping(rng: random.Random, split: Split) -> Problem:
    """Return a problem about the change after buying two products."""
    who, (x, y) = FIRST_NAMES.pick(rng, split), PRODUCTS.sample(rng, split, 2)
    while True:
        (a, b), (c, d) = _factors(rng), _factors(rng)
        total = a * b + c * d
        if total <= 90:
            break
    paid = rng.randint(total + 1, 100)
    text = rng.choice(
        [f"{who} buys {a} {x}s at {b} dollars each and {c} {y}s at {d} dollars each, and pays with {paid} dollars.",
         f"In a shop {who} takes {a} {x}s for {b} dollars each and {c} {y}s for {d} dollars each and gives the cashier "
         f"{paid} dollars.",
         f"{who} needs {a} {x}s and {c} {y}s. A {x} costs {b} dollars and a {y} costs {d} dollars. {who} has {paid} "
         f"dollars."]
    )  # fmt: skip
    ask = rng.choice(
        ["How much money is left?", "How much change does {who} get?", "What is the change?"]
    )
    return Problem(
        f"{text} {ask.format(who=who)}",
        [f"The {x}s cost {a} * {b} = {a * b} dollars.", f"The {y}s cost {c} * {d} = {c * d} dollars.",
         f"Together that is {a * b} + {c * d} = {total} dollars.",
         f"The change is {paid} - {total} = {paid - total} dollars."],
        paid - total,
    )  # fmt: skip


def _saving(rng: random.Random, split: Split) -> Problem:
    """Return a problem about saving money and spending some of it."""
    who, x = FIRST_NAMES.pick(rng, split), PRODUCTS.pick(rng, split)
    a, b = _factors(rng)
    start = rng.randint(1, 99 - a * b)
    have = start + a * b
    price = rng.randint(1, have)
    text = rng.choice(
        [f"{who} has {start} dollars and saves {a} dollars a week for {b} weeks. Then {who} buys a {x} for {price} "
         f"dollars.",
         f"With {start} dollars in the bank, {who} puts aside {a} dollars every week. After {b} weeks {who} spends {price} "
         f"dollars on a {x}.",
         f"{who} owns {start} dollars, earns {a} dollars a week during {b} weeks and pays {price} dollars for a {x}."]
    )  # fmt: skip
    ask = rng.choice(
        ["How many dollars are left?", "How much money remains?", "What is left in the end?"]
    )
    return Problem(
        f"{text} {ask}",
        [f"In {b} weeks {who} saves {a} * {b} = {a * b} dollars.",
         f"With the first money that is {start} + {a * b} = {have} dollars.",
         f"After buying the {x} there are {have} - {price} = {have - price} dollars."],
        have - price,
    )  # fmt: skip


def _bus(rng: random.Random, split: Split) -> Problem:
    """Return a problem about people getting on and off a bus."""
    driver = FIRST_NAMES.pick(rng, split)
    start, on = rng.randint(10, 50), rng.randint(2, 40)
    first = start + on
    off = rng.randint(2, first - 1)
    second = first - off
    again = rng.randint(1, 99 - second)
    text = rng.choice(
        [f"{driver} drives a bus with {start} people. At the first stop {on} get on, at the second stop {off} get off and at "
         f"the third stop {again} get on.",
         f"There are {start} people on the bus of {driver}. First {on} people get on, then {off} get off, then {again} get "
         f"on.",
         f"A bus driven by {driver} starts with {start} people; {on} get on, later {off} get off and finally {again} get "
         f"on."]
    )  # fmt: skip
    ask = rng.choice(
        ["How many people are on the bus now?", "How many people ride on?", "How full is the bus?"]
    )
    return Problem(
        f"{text} {ask}",
        [f"After the first stop there are {start} + {on} = {first} people.",
         f"After the second stop there are {first} - {off} = {second} people.",
         f"After the third stop there are {second} + {again} = {second + again} people."],
        second + again,
    )  # fmt: skip


def _boxes(rng: random.Random, split: Split) -> Problem:
    """Return a problem about products in boxes, of which some are replaced."""
    who, x = FIRST_NAMES.pick(rng, split), PRODUCTS.pick(rng, split)
    a, b = _factors(rng)
    broken = rng.randint(1, a * b - 1)
    good = a * b - broken
    more = rng.randint(1, 99 - good)
    text = rng.choice(
        [f"{who} packs {a} boxes with {b} {x}s each. {broken} {x}s are broken and thrown away. Then {more} new {x}s arrive.",
         f"{who} has {a} boxes and in each box there are {b} {x}s. {who} finds that {broken} are broken, removes them and "
         f"orders {more} more.",
         f"A shelf of {who} holds {a} boxes of {b} {x}s. After losing {broken} {x}s, {who} gets {more} others."]
    )  # fmt: skip
    ask = rng.choice(
        ["How many {x}s are there now?", "How many {x}s does {who} have?", "Count the {x}s."]
    )
    return Problem(
        f"{text} {ask.format(x=x, who=who)}",
        [f"The boxes hold {a} * {b} = {a * b} {x}s.", f"Without the lost ones there are {a * b} - {broken} = {good} {x}s.",
         f"With the new ones there are {good} + {more} = {good + more} {x}s."],
        good + more,
    )  # fmt: skip


def _work(rng: random.Random, split: Split) -> Problem:
    """Return a problem about two people producing things together."""
    one, two = FIRST_NAMES.sample(rng, split, 2)
    x = PRODUCTS.pick(rng, split)
    while True:
        (a, b), (c, d) = _factors(rng), _factors(rng)
        if a * b + c * d <= 99:
            break
    total = a * b + c * d
    sold = rng.randint(1, total)
    text = rng.choice(
        [f"{one} makes {a} {x}s an hour for {b} hours and {two} makes {c} {x}s an hour for {d} hours. They sell {sold}.",
         f"In {b} hours {one} builds {a} {x}s per hour. In {d} hours {two} builds {c} {x}s per hour. Of these, {sold} are "
         f"sold.",
         f"{one} and {two} produce {x}s: {one} {a} an hour during {b} hours, {two} {c} an hour during {d} hours. {sold} are "
         f"taken to the market."]
    )  # fmt: skip
    ask = rng.choice(
        ["How many {x}s are left?", "How many {x}s remain?", "What is the number of {x}s left?"]
    )
    return Problem(
        f"{text} {ask.format(x=x)}",
        [f"{one} makes {a} * {b} = {a * b} {x}s.", f"{two} makes {c} * {d} = {c * d} {x}s.",
         f"Together they make {a * b} + {c * d} = {total} {x}s.", f"There are {total} - {sold} = {total - sold} left."],
        total - sold,
    )  # fmt: skip


def _reading(rng: random.Random, split: Split) -> Problem:
    """Return a problem about the remaining pages of a book."""
    who = FIRST_NAMES.pick(rng, split)
    a, b = _factors(rng)
    weekend = rng.randint(1, 99 - a * b)
    read = a * b + weekend
    pages = rng.randint(read, 100)
    text = rng.choice(
        [f"{who} reads {a} pages a day for {b} days and {weekend} pages at the weekend. The book has {pages} pages.",
         f"A book of {who} has {pages} pages. {who} reads {a} pages on each of {b} days, then {weekend} pages on Sunday.",
         f"For {b} days {who} reads {a} pages a day, and later {weekend} pages more of a book with {pages} pages."]
    )  # fmt: skip
    ask = rng.choice(
        ["How many pages are left?", "How many pages remain?", "How much is still to read?"]
    )
    return Problem(
        f"{text} {ask}",
        [f"In {b} days {who} reads {a} * {b} = {a * b} pages.", f"In all that is {a * b} + {weekend} = {read} pages.",
         f"There are {pages} - {read} = {pages - read} pages left."],
        pages - read,
    )  # fmt: skip


def _garden(rng: random.Random, split: Split) -> Problem:
    """Return a problem about plants in rows, of which some are sold."""
    who = FIRST_NAMES.pick(rng, split)
    plant = rng.choice(
        ["tulips", "roses", "carrots", "onions", "beans", "lilies", "peppers", "radishes"]
    )
    a, b = _factors(rng)
    sold, given = sorted(rng.sample(range(1, a * b), 2)) if a * b > 4 else (1, 2)
    given -= sold
    left = a * b - sold
    text = rng.choice(
        [f"{who} plants {a} rows of {b} {plant}. {who} sells {sold} and gives away {given}.",
         f"In the garden of {who} there are {a} rows with {b} {plant} each. {sold} are sold and {given} are given to friends.",
         f"{who} grows {plant}: {a} rows, {b} in each. The neighbours buy {sold} and get {given} as a gift."]
    )  # fmt: skip
    ask = rng.choice(
        [
            f"How many {plant} are left?",
            f"How many {plant} remain?",
            f"How many {plant} does {who} keep?",
        ]
    )
    return Problem(
        f"{text} {ask}",
        [f"The rows hold {a} * {b} = {a * b} {plant}.", f"After the sale there are {a * b} - {sold} = {left} {plant}.",
         f"After the gift there are {left} - {given} = {left - given} {plant}."],
        left - given,
    )  # fmt: skip


def _points(rng: random.Random, split: Split) -> Problem:
    """Return a problem about the scores of two players."""
    one, two = FIRST_NAMES.sample(rng, split, 2)
    a, b, c = rng.randint(2, 30), rng.randint(2, 30), rng.randint(2, 30)
    first, total = a + b, a + b + c
    other = rng.randint(1, total)
    text = rng.choice(
        [f"{one} scores {a}, {b} and {c} points in three games. {two} scores {other} points in all.",
         f"In three rounds {one} gets {a} points, then {b} points, then {c} points, while {two} gets {other} points overall.",
         f"{one} plays three times and wins {a}, {b} and {c} points. The total of {two} is {other} points."]
    )  # fmt: skip
    ask = rng.choice(
        [
            f"By how many points is {one} ahead?",
            f"How many more points has {one}?",
            "What is the difference?",
        ]
    )
    return Problem(
        f"{text} {ask}",
        [f"After two games {one} has {a} + {b} = {first} points.",
         f"After three games {one} has {first} + {c} = {total} points.",
         f"The difference to {two} is {total} - {other} = {total - other} points."],
        total - other,
    )  # fmt: skip


_FAMILIES: tuple[Callable[[random.Random, Split], Problem], ...] = (
    _shopping, _saving, _bus, _boxes, _work, _reading, _garden, _points,
)  # fmt: skip


def make(rng: random.Random, split: Split) -> Task:
    """Return a random math task."""
    problem = rng.choice(_FAMILIES)(rng, split)
    ask, intro = _ASK.pick(rng, split), _INTRO.pick(rng, split)
    parts = [intro, problem.text, ask] if rng.random() < 0.7 else [ask, problem.text]
    answer = "\n".join([*problem.lines, f"Answer: {problem.answer}"])
    facts = {"answer": problem.answer, "equations": _equations(answer)}
    return Task("math", " ".join(filter(None, parts)), answer, facts)


def _equations(text: str) -> list[list[str]]:
    """Return every equation `a op b = c` of a text as [a, op, b, c]."""
    return [list(match) for match in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", text)]


def check(task: Task, text: str) -> bool:
    """Return True if the text has the expected equations and ends with the expected answer."""
    lines = text.strip().splitlines()
    return (
        bool(lines)
        and lines[-1].strip() == f"Answer: {task.facts['answer']}"
        and (_equations(text) == task.facts["equations"])
    )
