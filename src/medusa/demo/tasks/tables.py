"""Table tasks: turn records in one of several text formats into a Markdown table."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

from .task import Pool, Split, Task
from .values import CITIES, PRODUCTS, TOPICS, company, date, name, phrase

Record = dict[str, str]

_ASK = Pool(
    ["Make a Markdown table of these records", "Put the following into a Markdown table", "Show this data as a table",
     "Please format these records as a table", "Convert the list below to a Markdown table", "Tabulate the records",
     "Could you build a table from this?", "I would like a table of the following", "Create a table for this data",
     "Turn these entries into a table", "Write a Markdown table for the entries below", "Arrange this as a table",
     "Can you lay this out as a Markdown table?", "Give me these rows as a table", "Present the data in a table",
     "Draw up a table of what follows", "Format as Markdown table", "Rewrite these lines as a table",
     "Set the records out in a table", "List the records in tabular form"],
    held_out=0.25,
)  # fmt: skip
_MANNER = Pool(
    ["", "Keep the order.", "Do not change the values.", "Only the table, please.", "One row for each record.",
     "Keep the rows as they are.", "Nothing but the table.", "No comments."],
    held_out=0.25,
)  # fmt: skip
_COLUMNS = Pool(
    [
        "Columns:",
        "Use the columns",
        "Show only",
        "The columns are",
        "I only need",
        "Columns wanted:",
    ],
    0.2,
)
_DISHES = Pool(
    """soup salad curry pasta stew pie risotto tacos dumplings noodles omelette pizza""".split(),
    held_out=0.0,
)
_STATES = Pool(
    ["open", "closed", "pending", "shipped", "paid", "late", "draft", "active"], held_out=0.0
)


def _number(low: int, high: int) -> Callable[[random.Random, Split], str]:
    """Return a function that draws an integer from low to high, as text."""
    return lambda rng, _: str(rng.randint(low, high))


_FIELDS: dict[str, dict[str, Callable[[random.Random, Split], str]]] = {
    "people": {"name": name, "age": _number(18, 79), "city": CITIES.pick, "hobby": TOPICS.pick},
    "products": {
        "product": PRODUCTS.pick,
        "price": _number(2, 999),
        "stock": _number(0, 99),
        "maker": company,
    },
    "orders": {
        "order": _number(100, 999),
        "customer": name,
        "product": PRODUCTS.pick,
        "status": _STATES.pick,
    },
    "trips": {
        "traveller": name,
        "city": CITIES.pick,
        "date": lambda rng, _: date(rng),
        "days": _number(2, 30),
    },
    "menu": {
        "dish": _DISHES.pick,
        "price": _number(4, 60),
        "cook": name,
        "minutes": _number(5, 90),
    },
    "courses": {
        "course": TOPICS.pick,
        "teacher": name,
        "room": _number(1, 400),
        "seats": _number(5, 99),
    },
    "firms": {"company": company, "city": CITIES.pick, "founder": name, "staff": _number(2, 900)},
    "games": {
        "player": name,
        "score": _number(0, 999),
        "level": _number(1, 50),
        "city": CITIES.pick,
    },
}


def _lines(records: list[Record]) -> str:
    return "\n".join(
        ", ".join(f"{key}: {value}" for key, value in record.items()) for record in records
    )


def _csv(records: list[Record]) -> str:
    return "\n".join([",".join(records[0]), *(",".join(record.values()) for record in records)])


def _jsonl(records: list[Record]) -> str:
    return "\n".join(json.dumps(record) for record in records)


def _bullets(records: list[Record]) -> str:
    return "\n".join(
        "- " + "; ".join(f"{key} {value}" for key, value in record.items()) for record in records
    )


def _equals(records: list[Record]) -> str:
    return "\n".join(
        " ".join(f"{key}={value!r}" for key, value in record.items()) for record in records
    )


_FORMATS = (_lines, _csv, _jsonl, _bullets, _equals)


def make(rng: random.Random, split: Split) -> Task:
    """Return a random table task; in 30 % of them one field of the records is left out."""
    fields = rng.choice(list(_FIELDS.values()))
    keys = list(fields)[: rng.randint(3, 4)]
    records = [{key: fields[key](rng, split) for key in keys} for _ in range(rng.randint(3, 5))]
    dropped = rng.choice(keys) if rng.random() < 0.3 else None
    columns = [key for key in keys if key != dropped]
    ask = [phrase(rng, split, _ASK) + ".", _MANNER.pick(rng, split)]
    if columns != keys:
        ask.insert(1, f"{_COLUMNS.pick(rng, split)} {', '.join(columns)}.")
    request = " ".join(filter(None, ask)).replace("?.", "?")
    data = rng.choice(_FORMATS)(records)
    prompt = f"{request}\n{data}" if rng.random() < 0.75 else f"{data}\n{request}"
    rows = [[record[column] for column in columns] for record in records]
    return Task("tables", prompt, _markdown(columns, rows), {"header": columns, "rows": rows})


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def check(task: Task, text: str) -> bool:
    """Return True if the text is one Markdown table with the expected header and rows, in order."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.strip().splitlines()
    ]
    if len(lines) < 2 or any(set(cell) - set("-: ") or not cell for cell in lines[1]):
        return False
    return lines[0] == task.facts["header"] and lines[2:] == task.facts["rows"]
