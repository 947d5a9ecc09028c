"""The file of `medusa bench`: settings, and a line of JSON for each question that was answered.

A run that was stopped goes on from its file; a question is in it as a whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import Field

from ..files import Schema, locked, parse_json
from .methods import Run


class RunRecord(Schema):
    """An answer by a method, as of `Run`."""

    ids: list[int]
    steps: int
    prefill_seconds: float
    seconds: float
    step_seconds: list[float]
    phases: dict[str, float]
    accepted: list[int]
    text: str
    drafting_steps: int | None = None
    counted: int = 0
    device_peak_bytes: int | None = None

    @classmethod
    def of(cls, run: Run) -> RunRecord:
        """Return the record of a run."""
        lists = {"step_seconds": list(run.step_seconds), "accepted": list(run.accepted)}
        return cls(**{**asdict(run), **lists})

    def run(self) -> Run:
        """Return the run that was recorded."""
        tuples = {"step_seconds": tuple(self.step_seconds), "accepted": tuple(self.accepted)}
        return Run(**{**self.model_dump(), **tuples})


class TurnRecord(Schema):
    """A turn of a question, answered by all methods.

    Attributes:
        prompt: token ids of the prompt, with the turns before.
        runs: by method, one for each round.
        right: by method, the verdict of the question's checker on the first round's answer.
        measured_again: methods of which a run was stalled and was measured again.
        losses: by method, the sum of -log p of the first round's tokens under the backbone; empty
            in files, because `perplexity.with_losses` computes it after the measurement.
    """

    prompt: list[int]
    temperature: float
    runs: dict[str, list[RunRecord]]
    right: dict[str, bool]
    measured_again: list[str]
    losses: dict[str, float] = Field(default_factory=dict)


class QuestionRecord(Schema):
    """A question and its turns."""

    question: str
    category: str
    turns: list[TurnRecord]


class SettingsLine(Schema):
    """The first line of the file: what all its records have in common."""

    settings: dict[str, Any]


class RecordsFile:
    """An open file of records.

    Attributes:
        records: those in the file, by question.
    """

    def __init__(self, path: Path, file: BinaryIO, records: Sequence[QuestionRecord]):
        self.path, self._file = path, file
        self.records = {record.question: record for record in records}

    def append(self, record: QuestionRecord) -> None:
        """Write a record behind the others."""
        _write_line(self._file, record.model_dump())
        self.records[record.question] = record


@contextmanager
def records_file(path: Path, settings: Mapping[str, Any]) -> Iterator[RecordsFile]:
    """Open a new or an existing file of records, locked for this process.

    An unfinished last line, left by a run that was killed, is removed.

    Raises:
        ValueError: another process writes the file, it has other settings, or a line is broken.
    """
    with locked(path):
        records = _read(path, settings) if path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            if not file.tell():
                _write_line(file, {"settings": dict(settings)})
            yield RecordsFile(path, file, records)


def read_records_file(path: Path) -> tuple[dict[str, Any], list[QuestionRecord]]:
    """Return the settings and the records of a file, without an unfinished last line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no record, or a line in it is broken.
    """
    first, *rest = path.read_bytes().rpartition(b"\n")[0].splitlines() or [b""]
    known = parse_json(first, SettingsLine, f"{path}, line 1", "the line").settings
    if not rest:
        raise ValueError(f"{path} holds no answered question")
    return known, _parsed(path, rest)


def _read(path: Path, settings: Mapping[str, Any]) -> list[QuestionRecord]:
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        os.truncate(path, complete)
    first, *rest = content[:complete].splitlines() or [b""]
    if not first:
        return []
    known = parse_json(first, SettingsLine, f"{path}, line 1", "the line").settings
    now = json.loads(json.dumps(dict(settings)))
    different = [name for name in {**known, **now} if known.get(name) != now.get(name)]
    if different:
        raise ValueError(
            f"{path} was begun with other settings ({', '.join(different)}): take another --output"
        )
    return _parsed(path, rest)


def _parsed(path: Path, lines: Sequence[bytes]) -> list[QuestionRecord]:
    return [
        parse_json(line, QuestionRecord, f"{path}, line {number}", "the line")
        for number, line in enumerate(lines, start=2)
    ]


def _write_line(file: BinaryIO, content: Mapping[str, Any]) -> None:
    line = json.dumps(content).encode() + b"\n"
    while line:  # an unbuffered write may write only a part
        line = line[file.write(line) :]
