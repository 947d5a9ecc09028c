"""The file that answers are collected in: one line a conversation, resumed where it stopped.

Beside `answers.jsonl` lie `answers.jsonl.settings.json`, which says how the answers were made, and,
where there are any, `answers.jsonl.left-out`, the names of conversations without an answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..files import Schema, locked, parse_json, read_json, write_json
from .conversations import Ended, Settings


class Begun(Schema):
    """What `*.settings.json` holds."""

    settings: Settings


class Kept(Schema):
    """A line of the file: a conversation."""

    id: str
    messages: list[dict[str, Any]]


class LeftOut(Schema):
    """A line of `*.left-out`: a conversation that came to nothing, and why."""

    id: str
    why: str


@dataclass
class AnswersFile:
    """An open file of finished conversations.

    Attributes:
        path: where it is.
        settings: how its answers are made.
        kept: names of the conversations in it.
        left_out: names of conversations that have no answer.
    """

    path: Path
    settings: Settings
    kept: set[str]
    left_out: set[str]
    file: BinaryIO

    def __contains__(self, name: str) -> bool:
        return name in self.kept or name in self.left_out

    def append(self, name: str, ended: Ended) -> None:
        """Write a conversation that has ended, or its name and why it has no answer.

        Raises:
            UnicodeEncodeError: a text holds half of a surrogate pair; nothing is written.
            OSError: the disk is full, or another error of writing; names the file, which is as it
                was.
        """
        if ended.answered:
            _write(self.file, self.path, {"id": name, "messages": ended.messages})
            self.kept.add(name)
        else:
            place = _left_out(self.path)
            with _opened(place) as file:
                _write(file, place, {"id": name, "why": ended.why})
            self.left_out.add(name)


@contextmanager
def answers_file(path: Path, settings: Settings) -> Iterator[AnswersFile]:
    """Open `path` for this process alone, to begin it or to go on with it.

    A last line that was being written when its run was killed is removed.

    Raises:
        ValueError: another process writes the file, it is not `medusa distill`'s, it was begun with
            other settings, or a line in it is broken; names file and line.
        OSError: the file cannot be written.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: give --output the name of a file")
    beside = path.with_name(path.name + ".settings.json")
    with locked(path):
        if any(file.is_file() and file.stat().st_size for file in (path, _left_out(path))):
            _check_settings(path, beside, settings)
        kept, left_out = _names(path, Kept), _names(_left_out(path), LeftOut)
        write_json(beside, {"settings": asdict(settings)})
        with _opened(path) as file:
            yield AnswersFile(path, settings, kept, left_out, file)


def _check_settings(path: Path, beside: Path, settings: Settings) -> None:
    if not beside.is_file():
        raise ValueError(
            f"{path} is no file of medusa distill ({beside.name} is missing): take another --output"
        )
    try:
        there = asdict(read_json(beside, Begun).settings)
    except ValueError as error:
        raise ValueError(
            f"{error}. It says how {path.name} was made: restore it, or take another --output"
        ) from None
    other = [name for name, value in asdict(settings).items() if there[name] != value]
    if other:
        raise ValueError(
            f"{path} was begun with other settings ({', '.join(other)}): take another --output"
        )


def _left_out(path: Path) -> Path:
    return path.with_name(path.name + ".left-out")


def _names(path: Path, schema: type[Kept] | type[LeftOut]) -> set[str]:
    """Return the names in a file of finished lines, and mend its end where a run was killed while
    writing it.
    """
    if not path.is_file():
        return set()
    names, whole, line = set(), 0, b"\n"
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if line.strip():
                names.add(_name(line, schema, f"{path}, line {number}"))
    if not line.endswith(b"\n"):
        names |= _mended(path, schema, whole, line)
    return names


def _mended(path: Path, schema: type[Kept] | type[LeftOut], whole: int, last: bytes) -> set[str]:
    """End a last line that lacks only its line break, and return its name; remove any other."""
    try:
        name = _name(last, schema, str(path))
    except ValueError:
        os.truncate(path, whole)
        return set()
    with path.open("ab") as file:
        file.write(b"\n")
    return {name}


def _name(line: bytes, schema: type[Kept] | type[LeftOut], place: str) -> str:
    try:
        return parse_json(line, schema, place, "the line").id
    except ValueError as error:
        raise ValueError(
            f"{error}: delete the line, and its prompt is asked again, or take another --output"
        ) from None


def _opened(path: Path) -> BinaryIO:
    """Open a file for lines that are appended. Without a buffer, no part of a line waits to be
    written later.
    """
    return path.open("ab", buffering=0)


def _write(file: BinaryIO, place: Path, content: dict[str, Any]) -> None:
    """Append a line; where that fails, the file is as it was before."""
    line = json.dumps(content, ensure_ascii=False).encode("utf-8") + b"\n"
    before = os.fstat(file.fileno()).st_size
    try:
        while line:
            line = line[file.write(line) :]
    except OSError as error:
        file.truncate(before)
        raise OSError(error.errno, error.strerror, str(place)) from None
