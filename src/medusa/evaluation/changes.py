"""Changes between two reports of `medusa bench`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from ..files import Schema, read_json
from .bench_report import interval

PLAIN = "plain"


class MethodTurn(Schema):
    """A turn by a method."""

    tokens_per_second: float
    tokens_per_step: float | None


class ReportTurn(Schema):
    """A turn of a question in a report."""

    question: str
    turn: int
    methods: dict[str, MethodTurn]


class Report(Schema):
    """The part of a report that is compared."""

    model_config = ConfigDict(extra="ignore")

    settings: dict[str, Any]
    turns: list[ReportTurn]


@dataclass(frozen=True)
class Change:
    """The ratio of a figure after to the figure before: the median over turns.

    Attributes:
        low: lower end of its 95 % interval.
        high: upper end.
    """

    method: str
    figure: str
    turns: int
    ratio: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """True if the interval does not hold 1, which is no change."""
        return not self.low <= 1 <= self.high


def read_report(file: Path) -> Report:
    """Return a report of `medusa bench --json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no report; names the fields.
    """
    return read_json(file, Report)


def changes(before: Report, after: Report) -> list[Change]:
    """Return the changes of the methods and turns that both reports have.

    The speedup over plain decoding is compared besides tokens a second, because another machine, or
    a busy one, changes both methods' speed.

    Raises:
        ValueError: the reports have no method of a turn in common.
    """
    earlier = {(each.question, each.turn): each.methods for each in before.turns}
    pairs = [
        (earlier[each.question, each.turn], each.methods)
        for each in after.turns
        if (each.question, each.turn) in earlier
    ]
    names = dict.fromkeys(name for old, new in pairs for name in new if name in old)
    if not names:
        raise ValueError("the reports have no method of a question in common")
    found = []
    for name in names:
        shared = [(old, new) for old, new in pairs if name in old and name in new]
        for figure, values in figures(name, shared).items():
            low, high = interval(values)
            median = statistics.median(values)
            found.append(Change(name, figure, len(values), median, low, high))
    return found


def figures(
    name: str, pairs: Sequence[tuple[Mapping[str, MethodTurn], Mapping[str, MethodTurn]]]
) -> dict[str, list[float]]:
    """Return the ratios after / before of each figure of a method, turn by turn.

    Tokens a step are left out for methods that do not report their steps.
    """
    steps = [(old[name].tokens_per_step, new[name].tokens_per_step) for old, new in pairs]
    ratios = [after / before for before, after in steps if before and after]
    found = {"tokens a step": ratios} if ratios else {}
    found["tokens a second"] = [
        new[name].tokens_per_second / old[name].tokens_per_second for old, new in pairs
    ]
    timed = [(old, new) for old, new in pairs if PLAIN in old and PLAIN in new]
    if name != PLAIN and timed:
        found["speedup over plain"] = [
            (new[name].tokens_per_second / new[PLAIN].tokens_per_second)
            / (old[name].tokens_per_second / old[PLAIN].tokens_per_second)
            for old, new in timed
        ]
    return found


def different_settings(before: Report, after: Report) -> list[str]:
    """Return the settings that differ, as "name: before, after"."""
    names = dict.fromkeys((*before.settings, *after.settings))
    return [
        f"{name}: {before.settings.get(name)}, {after.settings.get(name)}"
        for name in names
        if before.settings.get(name) != after.settings.get(name)
    ]
