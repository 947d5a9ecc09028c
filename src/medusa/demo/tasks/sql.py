"""SQL tasks: answer a question about two tables with an SQLite query."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

from .task import Pool, Split, Task
from .values import CITIES, LAST_NAMES, PRODUCTS, TOPICS


class TableSchema(NamedTuple):
    """A main table, and a second table that it refers to.

    Attributes:
        table: name of the main table.
        label: its column with the name of a row.
        text: its column with words.
        numbers: its two columns with integers.
        other: name of the second table.
        other_label: the second table's column with the name of a row.
        words: values that questions ask for in the column `text`.
    """

    table: str
    label: str
    text: str
    numbers: tuple[str, str]
    other: str
    other_label: str
    words: Pool[str]


_SCHEMAS = [
    TableSchema("orders", "item", "city", ("price", "weight"), "customers", "name", CITIES),
    TableSchema("employees", "name", "city", ("salary", "age"), "departments", "title", CITIES),
    TableSchema("books", "title", "topic", ("pages", "year"), "authors", "name", TOPICS),
    TableSchema("flights", "code", "city", ("distance", "price"), "airlines", "name", CITIES),
    TableSchema("products", "label", "category", ("price", "stock"), "suppliers", "name", PRODUCTS),
    TableSchema("courses", "title", "topic", ("credits", "seats"), "teachers", "name", TOPICS),
    TableSchema("players", "name", "city", ("score", "level"), "teams", "title", CITIES),
    TableSchema("songs", "title", "topic", ("seconds", "plays"), "artists", "name", TOPICS),
    TableSchema("rooms", "number", "city", ("price", "beds"), "hotels", "name", CITIES),
    TableSchema("cars", "model", "city", ("price", "mileage"), "makers", "name", CITIES),
    TableSchema("films", "title", "topic", ("minutes", "rating"), "studios", "name", TOPICS),
    TableSchema("patients", "name", "city", ("age", "visits"), "doctors", "name", CITIES),
    TableSchema("tickets", "code", "city", ("price", "seat"), "events", "title", CITIES),
    TableSchema("houses", "address", "city", ("price", "area"), "agents", "name", CITIES),
    TableSchema("lessons", "title", "topic", ("minutes", "price"), "tutors", "name", TOPICS),
    TableSchema("loans", "code", "city", ("amount", "months"), "banks", "name", CITIES),
    TableSchema("parcels", "code", "city", ("weight", "value"), "drivers", "name", CITIES),
    TableSchema("dishes", "label", "city", ("price", "calories"), "cooks", "name", CITIES),
    TableSchema("papers", "title", "topic", ("pages", "citations"), "journals", "name", TOPICS),
    TableSchema("plants", "label", "owner", ("height", "age"), "gardens", "name", LAST_NAMES),
    TableSchema("pets", "name", "owner", ("age", "weight"), "clinics", "title", LAST_NAMES),
    TableSchema("tools", "label", "category", ("price", "weight"), "shops", "name", PRODUCTS),
    TableSchema("races", "title", "city", ("distance", "runners"), "clubs", "name", CITIES),
    TableSchema("repairs", "code", "owner", ("hours", "cost"), "garages", "name", LAST_NAMES),
    TableSchema("talks", "title", "topic", ("minutes", "guests"), "speakers", "name", TOPICS),
    TableSchema("trips", "code", "city", ("days", "cost"), "guides", "name", CITIES),
]
_ASK = Pool(
    ["Write an SQL query for this question.", "Answer with one SQL query.", "Give me the SQL for this.",
     "Which query answers the question?", "Please write the query.", "I need an SQL statement for the following.",
     "Turn the question into SQL.", "Translate this to SQL.", "Help me query the database.", "Write SQL.",
     "How do I ask the database this?", "Compose a query in SQL.", "Formulate the request in SQL.",
     "Could you write this in SQL?", "Express the question as a query.", "What SQL do I need here?",
     "Produce an SQLite query.", "Make a SELECT statement for this.", "Convert my question to an SQL query.",
     "As a database expert, write the query."],
    held_out=0.25,
)  # fmt: skip
_LEAD = Pool(
    ["The schema is", "Schema:", "Tables:", "We have these tables:", "My database has", "Given the tables",
     "The tables are", "Database:"],
    held_out=0.25,
)  # fmt: skip
_SHOW = Pool(["Show", "List", "Find", "Give me", "Return", "Get"], held_out=0.0)
_OVER = Pool(["greater than", "above", "more than", "over"], held_out=0.0)
_UNDER = Pool(["less than", "below", "under", "smaller than"], held_out=0.0)
_FALLING = Pool(
    ["from highest to lowest", "in descending order", "largest first", "highest first"],
    held_out=0.0,
)
_RISING = Pool(
    ["from lowest to highest", "in ascending order", "smallest first", "lowest first"], held_out=0.0
)
_AGGREGATES = {"average": "AVG", "total": "SUM", "highest": "MAX", "lowest": "MIN"}

QueryTask = tuple[str, str, str]
"""A question, its query, and a word that rows must contain so that the result is not empty."""


def _comparison(rng: random.Random, split: Split, low: int = 20, high: int = 60) -> tuple[str, str]:
    """Return a random comparison in words and in SQL, such as "above 30" and "> 30"."""
    over, bound = rng.random() < 0.5, rng.randint(low, high)
    words = (_OVER if over else _UNDER).pick(rng, split)
    return f"{words} {bound}", f"{'>' if over else '<'} {bound}"


def _order(rng: random.Random, split: Split) -> tuple[str, str]:
    """Return a random sorting order in words and in SQL."""
    falling = rng.random() < 0.5
    return (_FALLING if falling else _RISING).pick(rng, split), "DESC" if falling else "ASC"


def _columns_of(s: TableSchema, *names: str) -> str:
    """Return the SELECT list of the main table's key and the named columns."""
    return ", ".join([f"{s.table}.id", *(f"{s.table}.{name} AS {name}" for name in names)])


def _filtered(rng: random.Random, split: Split, s: TableSchema) -> QueryTask:
    """Return a question that filters and sorts rows."""
    word, (comparison, condition), (order, direction) = (
        s.words.pick(rng, split),
        _comparison(rng, split),
        _order(rng, split),
    )
    a, b = rng.sample(s.numbers, 2)
    return (
        f"{_SHOW.pick(rng, split)} the {s.label} and {a} of {s.table} with {s.text} {word} and {a} {comparison}, sorted by {b} "
        f"{order}.",
        f"SELECT {_columns_of(s, s.label, a)}\nFROM {s.table}\nWHERE {s.table}.{s.text} = '{word}'\n"
        f"  AND {s.table}.{a} {condition}\nORDER BY {s.table}.{b} {direction}, {s.table}.id ASC;",
        word,
    )


def _top(rng: random.Random, split: Split, s: TableSchema) -> QueryTask:
    """Return a question that lists the rows with the largest values."""
    word, count, (comparison, condition) = (
        s.words.pick(rng, split),
        rng.randint(2, 9),
        _comparison(rng, split),
    )
    a, b = rng.sample(s.numbers, 2)
    return (
        f"{_SHOW.pick(rng, split)} the {count} {s.table} with the highest {a} where {b} is {comparison}: {s.label}, {s.text} and "
        f"{a}.",
        f"SELECT {_columns_of(s, s.label, s.text, a)}\nFROM {s.table}\nWHERE {s.table}.{b} {condition}\n"
        f"ORDER BY {s.table}.{a} DESC, {s.table}.id ASC\nLIMIT {count};",
        word,
    )


def _grouped(rng: random.Random, split: Split, s: TableSchema) -> QueryTask:
    """Return a question that aggregates rows by their text column."""
    word, (comparison, condition) = s.words.pick(rng, split), _comparison(rng, split)
    a, b = rng.sample(s.numbers, 2)
    what = rng.choice(list(_AGGREGATES))
    return (
        f"For each {s.text}, {_SHOW.pick(rng, split).lower()} the {what} {a} of {s.table} whose {b} is {comparison}, sorted by "
        f"{s.text}.",
        f"SELECT {s.table}.{s.text} AS {s.text}, {_AGGREGATES[what]}({s.table}.{a}) AS {what}_{a}\nFROM {s.table}\n"
        f"WHERE {s.table}.{b} {condition}\nGROUP BY {s.table}.{s.text}\nORDER BY {s.table}.{s.text} ASC;",
        word,
    )


def _joined(rng: random.Random, split: Split, s: TableSchema) -> QueryTask:
    """Return a question that joins both tables."""
    word, (comparison, condition), (order, direction) = (
        s.words.pick(rng, split),
        _comparison(rng, split),
        _order(rng, split),
    )
    a = rng.choice(s.numbers)
    key = s.other[:-1]
    return (
        f"{_SHOW.pick(rng, split)} the {s.label} of {s.table} and the {s.other_label} from {s.other} where {s.text} is "
        f"{word} and {a} is {comparison}, sorted by {a} {order}.",
        f"SELECT {_columns_of(s, s.label)}, {s.other}.{s.other_label} AS {key}_{s.other_label}\nFROM {s.table}\n"
        f"JOIN {s.other} ON {s.table}.{key}_id = {s.other}.id\nWHERE {s.table}.{s.text} = '{word}'\n"
        f"  AND {s.table}.{a} {condition}\nORDER BY {s.table}.{a} {direction}, {s.table}.id ASC;",
        word,
    )


def _counted(rng: random.Random, split: Split, s: TableSchema) -> QueryTask:
    """Return a question that counts the rows of each row of the second table."""
    word, (comparison, condition), least = (
        s.words.pick(rng, split),
        _comparison(rng, split),
        rng.randint(1, 3),
    )
    a = rng.choice(s.numbers)
    key = s.other[:-1]
    return (
        f"How many {s.table} with {a} {comparison} does each of the {s.other} have? {_SHOW.pick(rng, split)} the "
        f"{s.other_label} and the count if it is at least {least}, sorted by {s.other_label}.",
        f"SELECT {s.other}.{s.other_label} AS {key}_{s.other_label}, COUNT({s.table}.id) AS {s.table}_count\nFROM {s.table}\n"
        f"JOIN {s.other} ON {s.table}.{key}_id = {s.other}.id\nWHERE {s.table}.{a} {condition}\n"
        f"GROUP BY {s.other}.{s.other_label}\nHAVING COUNT({s.table}.id) >= {least}\n"
        f"ORDER BY {s.other}.{s.other_label} ASC;",
        word,
    )


def _between(rng: random.Random, split: Split, s: TableSchema) -> QueryTask:
    """Return a question that filters rows by a range."""
    word, low, high = s.words.pick(rng, split), rng.randint(10, 45), rng.randint(50, 90)
    a, b = rng.sample(s.numbers, 2)
    order, direction = _order(rng, split)
    return (
        f"{_SHOW.pick(rng, split)} {s.label}, {s.text} and {a} of all {s.table} with {a} between {low} and {high}, sorted "
        f"by {b} {order}.",
        f"SELECT {_columns_of(s, s.label, s.text, a)}\nFROM {s.table}\n"
        f"WHERE {s.table}.{a} BETWEEN {low} AND {high}\nORDER BY {s.table}.{b} {direction}, {s.table}.id ASC;",
        word,
    )


_SHAPES: tuple[Callable[[random.Random, Split, TableSchema], QueryTask], ...] = (
    _filtered, _top, _grouped, _joined, _counted, _between,
)  # fmt: skip


def make(rng: random.Random, split: Split) -> Task:
    """Return a random SQL task."""
    schema = rng.choice(_SCHEMAS)
    question, query, word = rng.choice(_SHAPES)(rng, split, schema)
    ask, lead = _ASK.pick(rng, split), _LEAD.pick(rng, split)
    written = [f"{table}({', '.join(columns)})" for table, columns in _columns(schema).items()]
    tables = f"{lead} {', '.join(written)}."
    parts = [ask, tables, question] if rng.random() < 0.6 else [tables, question, ask]
    facts = {
        "columns": _columns(schema),
        "texts": [schema.text],
        "word": word,
        "query": query,
        "seed": rng.randint(0, 9999),
    }
    return Task("sql", "\n".join(parts), query, facts)


def _columns(s: TableSchema) -> dict[str, list[str]]:
    """Return the columns of both tables."""
    return {
        s.table: ["id", s.label, s.text, *s.numbers, f"{s.other[:-1]}_id"],
        s.other: ["id", s.other_label],
    }


def _database(facts: dict[str, Any]) -> sqlite3.Connection:
    """Return an in-memory database with seeded rows.

    It has enough different values that a wrong query is unlikely to return the right rows.
    """
    rng = random.Random(facts["seed"])
    connection = sqlite3.connect(":memory:")
    (table, columns), (other, other_columns) = facts["columns"].items()
    connection.execute(f"CREATE TABLE {other} ({', '.join(other_columns)})")
    connection.executemany(
        f"INSERT INTO {other} VALUES (?, ?)", [(n, f"{other}{n}") for n in range(1, 7)]
    )
    connection.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
    words = [facts["word"], facts["word"], "Elsewhere", "Nowhere"]
    rows = [
        (
            n,
            f"{table}{rng.randint(0, 999)}",
            rng.choice(words),
            rng.randint(1, 99),
            rng.randint(1, 99),
            rng.randint(1, 6),
        )
        for n in range(1, 1501)
    ]
    connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?)", rows)
    # A model's query runs here: it may not write, nor run for long.
    connection.execute("PRAGMA query_only = ON")
    connection.set_progress_handler(lambda: 1, 5_000_000)
    return connection


def check(task: Task, text: str) -> bool:
    """Return True if the text is a query that returns the reference query's rows, in order."""
    query = text.strip().removeprefix("```sql").removeprefix("```").removesuffix("```").strip()
    if not query.upper().startswith("SELECT"):
        return False
    try:
        expected = _database(task.facts).execute(task.facts["query"]).fetchall()
        return _database(task.facts).execute(query).fetchall() == expected
    except (sqlite3.Error, ValueError):
        return False
