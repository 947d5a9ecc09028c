"""Suites of questions: files of public benchmarks, read and checked. None of them is shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated

from pydantic import Field

from ..data.fields import read_prompt
from ..data.records import Record, read_records
from ..data.turns import Messages
from ..files import Schema, parse_object
from .checks import Check, number_check, program_check

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Sampling temperatures of MT-Bench by category, as FastChat sets them; others are greedy."""
INSTRUCTION = "Complete this Python function. Answer with the whole function.\n\n```python\n{}```"
"""The request of a HumanEval problem."""
Text = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class Question:
    """A question of a suite, of one or more turns.

    Attributes:
        id: its name in the suite.
        messages: the conversation up to the first turn that is answered.
        later: further turns of the user.
        temperature: sampling temperature that the suite prescribes; None leaves it to the caller.
        check: checker of the last answer's text, if there is one.
    """

    id: str
    category: str
    messages: Messages
    later: tuple[str, ...] = ()
    temperature: float | None = None
    check: Check | None = None


class TurnsRecord(Schema):
    """A question of MT-Bench, Spec-Bench or SPEED-Bench."""

    question_id: int | str
    category: str
    turns: Annotated[list[Text], Field(min_length=1)]


class AlpacaRecord(Schema):
    """A record of AlpacaEval."""

    instruction: Text
    output: str
    generator: str
    dataset: str


class HumanEvalRecord(Schema):
    """A problem of HumanEval."""

    task_id: str
    prompt: Text
    entry_point: Text
    test: Text


class ProblemRecord(Schema):
    """A problem of GSM8K."""

    question: Text
    answer: Text


def _user(text: str) -> Messages:
    return [{"role": "user", "content": text}]


def _mt_bench(record: Record, number: int) -> Question:
    found = _spec_bench(record, number)
    return Question(
        *(found.id, found.category, found.messages, found.later),
        temperature=TEMPERATURES.get(found.category, 0.0),
    )


def _spec_bench(record: Record, number: int) -> Question:
    found = parse_object(record.content, TurnsRecord, record.place, "the record")
    first, *later = found.turns
    return Question(str(found.question_id), found.category, _user(first), tuple(later))


def _alpaca_eval(record: Record, number: int) -> Question:
    found = parse_object(record.content, AlpacaRecord, record.place, "the record")
    return Question(str(number), found.dataset, _user(found.instruction))


def _human_eval(record: Record, number: int) -> Question:
    found = parse_object(record.content, HumanEvalRecord, record.place, "the record")
    check = program_check(found.prompt, found.entry_point, found.test)
    request = INSTRUCTION.format(found.prompt)
    return Question(found.task_id, "human-eval", _user(request), check=check)


def _gsm8k(record: Record, number: int) -> Question:
    found = parse_object(record.content, ProblemRecord, record.place, "the record")
    try:
        check = number_check(found.answer)
    except ValueError as error:
        raise ValueError(f"{record.place}: answer: {error}") from None
    return Question(str(number), "gsm8k", _user(found.question), check=check)


def _prompts(record: Record, number: int) -> Question:
    content = record.content if isinstance(record.content, dict) else {}
    category = content.get("category")
    named = category if isinstance(category, str) else "prompts"
    return Question(str(number), named, read_prompt(record))


SUITES: Mapping[str, Callable[[Record, int], Question]] = {
    "mt-bench": _mt_bench,
    "spec-bench": _spec_bench,
    "speed-bench": _spec_bench,
    "alpaca-eval": _alpaca_eval,
    "human-eval": _human_eval,
    "gsm8k": _gsm8k,
    "prompts": _prompts,
}
"""Readers by suite. A reader makes a question of a record and its number in the file, from 0."""


def read_suite(name: str, source: str, limit: int | None = None) -> list[Question]:
    """Return the questions of a suite's file, folder or dataset on the hub.

    Args:
        name: one of `SUITES`.
        source: path, or id of a dataset on the hub.
        limit: number of questions of each category; None is all.

    Raises:
        ValueError: a record is not as the suite's are; names file, record and field.
        FileNotFoundError: there is no such file or dataset.
    """
    return list(limited(_questions(name, source), limit))


def _questions(name: str, source: str) -> Iterator[Question]:
    names = set[str]()
    for number, record in enumerate(read_records(source)):
        if record.problem:
            raise ValueError(f"{record.place}: {record.problem}")
        question = SUITES[name](record, number)
        if question.id in names:
            raise ValueError(f"{record.place}: another question has the name {question.id}, too")
        names.add(question.id)
        yield question


def limited(questions: Iterator[Question], limit: int | None) -> Iterator[Question]:
    """Yield the questions, the first of each category first; at most `limit` of a category."""
    by_category: dict[str, list[Question]] = {}
    for question in questions:
        by_category.setdefault(question.category, []).append(question)
    chosen = [list(islice(each, limit)) for each in by_category.values()]
    for turn in range(max(map(len, chosen), default=0)):
        yield from (each[turn] for each in chosen if turn < len(each))
