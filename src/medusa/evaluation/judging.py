"""Answers of MT-Bench, graded one by one by a language model (Zheng et al., 2023; table 2).

The judge gets FastChat's own prompts (`judge_prompts.jsonl`), and for mathematics, reasoning and
code the reference answers (`reference_answer/gpt-4.jsonl`). It ends with a rating such as [[7]].
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ..data.records import read_records
from ..data.turns import Messages
from ..files import Schema, parse_object
from .records import QuestionRecord
from .suites import Question

WITH_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose answers are compared with a reference."""
RATING = re.compile(r"\[\[(\d+\.?\d*)\]\]")
LOOSE_RATING = re.compile(r"\[(\d+\.?\d*)\]")
"""Used where the judge forgot a pair of brackets, as in FastChat."""
SCALE = (1.0, 10.0)


class Template(Schema):
    """A prompt of the judge."""

    name: str
    type: str
    system_prompt: str
    prompt_template: str


class Choice(Schema):
    """An answer in a file of reference answers."""

    turns: Annotated[list[str], Field(min_length=1)]


class Reference(Schema):
    """A line of a file of reference answers."""

    question_id: int | str
    choices: Annotated[list[Choice], Field(min_length=1)]


@dataclass(frozen=True)
class Grading:
    """The prompts and the reference answers of a judge.

    Attributes:
        templates: the prompts for single answers, by name.
        references: reference answers of each turn, by question.
    """

    templates: Mapping[str, Template]
    references: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, prompts: str, references: str | None) -> Grading:
        """Read FastChat's files of prompts and of reference answers.

        Raises:
            ValueError: a record is not as it should be, or a prompt is missing; names file and
                field.
            FileNotFoundError: there is no such file.
        """
        templates = {
            each.name: each for each in _parsed(prompts, Template) if each.type == "single"
        }
        for base in ("single-v1", "single-math-v1"):
            for name in (base, f"{base}-multi-turn"):
                if name not in templates:
                    raise ValueError(f"{prompts}: the prompt {name} is missing")
        known = (
            {}
            if references is None
            else {
                str(each.question_id): each.choices[0].turns
                for each in _parsed(references, Reference)
            }
        )
        return cls(templates, known)

    def prompt(self, question: Question, answers: Sequence[str], category: str) -> Messages:
        """Return the judge's prompt about the last of a question's answers so far.

        Raises:
            ValueError: the question needs a reference answer, and there is none.
        """
        turn = len(answers)
        needs = category in WITH_REFERENCE
        references = self.references.get(question.id, ())
        if needs and len(references) < turn:
            raise ValueError(
                f"question {question.id} ({category}) needs a reference answer of turn {turn}: "
                "pass --references"
            )
        name = "single-math-v1" if needs else "single-v1"
        template = self.templates[name if turn == 1 else f"{name}-multi-turn"]
        asked = [question.messages[-1]["content"], *question.later]
        fields = {"question": asked[0], "answer": answers[0]}
        for number in range(turn):
            fields[f"question_{number + 1}"] = asked[number]
            fields[f"answer_{number + 1}"] = answers[number]
            if needs:
                fields[f"ref_answer_{number + 1}"] = references[number]
        return [
            {"role": "system", "content": template.system_prompt},
            {"role": "user", "content": filled(template.prompt_template, fields)},
        ]


def filled(template: str, fields: Mapping[str, str]) -> str:
    """Return a template with `{name}` replaced; braces in what is filled in stay as they are."""
    names = "|".join(map(re.escape, fields))
    return re.sub(rf"\{{({names})\}}", lambda match: fields[match.group(1)], template)


def requests(
    records: Sequence[QuestionRecord],
    questions: Mapping[str, Question],
    methods: Sequence[str],
    grading: Grading,
) -> list[tuple[str, Messages]]:
    """Return the name and the prompt of each grading: one for each turn and method.

    The conversation before a turn is the one that stood in its prompt, which holds the answers of
    the first method.

    Raises:
        ValueError: a question of the records is not among the questions, or lacks a reference.
    """
    found = []
    for record in records:
        if record.question not in questions:
            raise ValueError(
                f"the records hold question {record.question}, which is not in the suite's file"
            )
        question, before = questions[record.question], list[str]()
        for number, turn in enumerate(record.turns):
            for method in methods:
                if method in turn.runs:
                    answers = [*before, turn.runs[method][0].text]
                    prompt = grading.prompt(question, answers, record.category)
                    found.append((grading_name(record.question, number, method), prompt))
            before.append(next(iter(turn.runs.values()))[0].text)
    return found


def grading_name(question: str, turn: int, method: str) -> str:
    """Return the name of a grading in its file."""
    return f"{question}/{turn}/{method}"


def rating(text: str) -> float | None:
    """Return the rating in a judge's answer; None without one from 1 to 10."""
    match = RATING.search(text) or LOOSE_RATING.search(text)
    value = float(match.group(1)) if match else None
    return value if value is not None and SCALE[0] <= value <= SCALE[1] else None


def scores(
    records: Sequence[QuestionRecord], methods: Sequence[str], graded: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return each method's mean ratings: in total, by turn and by category.

    Args:
        graded: the judge's answers, by the name of the grading. Answers without a rating are
            counted as failures and not as ratings.
    """
    found = {}
    for method in methods:
        rated: list[tuple[str, int, float]] = []
        failures = 0
        for record in records:
            for number in range(len(record.turns)):
                answer = graded.get(grading_name(record.question, number, method))
                value = None if answer is None else rating(answer)
                if value is None:
                    failures += 1
                else:
                    rated.append((record.category, number, value))
        found[method] = {
            "rating": _mean(value for _, _, value in rated),
            "by_turn": {
                str(turn + 1): _mean(value for _, number, value in rated if number == turn)
                for turn in sorted({number for _, number, _ in rated})
            },
            "by_category": {
                name: _mean(value for category, _, value in rated if category == name)
                for name in dict.fromkeys(category for category, _, _ in rated)
            },
            "rated": len(rated),
            "failures": failures,
        }
    return found


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _parsed(source: str, schema: type[Any]) -> list[Any]:
    found = []
    for record in read_records(source):
        if record.problem:
            raise ValueError(f"{record.place}: {record.problem}")
        found.append(parse_object(record.content, schema, record.place, "the record"))
    return found
