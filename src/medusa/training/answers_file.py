"""The file of `medusa distill`: a JSON line for each finished conversation; a run can resume it.

Beside `answers.jsonl` are `answers.jsonl.settings.json`, the settings that made the answers, and
`answers.jsonl.left-out`, the names of the conversations without an answer, if there are any.
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
from .conversations import FinishedConversation, GenerationSettings, first_question


class SettingsFile(Schema):
    """Schema of `*.settings.json`."""

    settings: GenerationSettings


class AnswerLine(Schema):
    """Schema of a line of the answers file: a conversation with its name."""

    id: str
    messages: list[dict[str, Any]]

    @property
    def question(self) -> str:
        """The first turn of the user."""
        return first_question(self.messages)


class LeftOutLine(Schema):
    """Schema of a line of `*.left-out`: a conversation without an answer, and why it has none."""

    id: str
    why: str

    @property
    def question(self) -> str:
        """No question: it may be asked again."""
        return ""


@dataclass
class AnswersFile:
    """An open file of finished conversations.

    Attributes:
        path: path of the file.
        settings: settings of its answers.
        kept: names of the conversations in the file.
        left_out: names of the conversations without an answer.
        questions: first questions of the conversations in the file.
        file: the open file.
    """

    path: Path
    settings: GenerationSettings
    kept: set[str]
    left_out: set[str]
    questions: set[str]
    file: BinaryIO

    def __contains__(self, name: str) -> bool:
        return name in self.kept or name in self.left_out

    def append(self, name: str, finished: FinishedConversation) -> None:
        """Append a finished conversation; one without an answer goes to `*.left-out`.

        Raises:
            UnicodeEncodeError: a text holds half of a surrogate pair; nothing is written.
            OSError: writing failed, such as on a full disk; the message names the file, which is
                unchanged.
        """
        if finished.answered:
            _write_line(self.file, self.path, {"id": name, "messages": finished.messages})
            self.kept.add(name)
        else:
            path = _left_out_path(self.path)
            with _open_for_lines(path) as file:
                _write_line(file, path, {"id": name, "why": finished.why})
            self.left_out.add(name)


@contextmanager
def answers_file(path: Path, settings: GenerationSettings) -> Iterator[AnswersFile]:
    """Open a new or an existing file of answers, locked for this process.

    An unfinished last line, left by a run that was killed, is removed.

    Raises:
        ValueError: another process writes the file, `medusa distill` has not made it, it has other
            settings, or a line in it is broken; the message names file and line.
        OSError: the file cannot be written.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: give --output the name of a file")
    settings_path = path.with_name(path.name + ".settings.json")
    left_out_path = _left_out_path(path)
    with locked(path):
        if any(file.is_file() and file.stat().st_size for file in (path, left_out_path)):
            _check_settings(path, settings_path, settings)
        kept, left_out = _read_lines(path, AnswerLine), _read_lines(left_out_path, LeftOutLine)
        write_json(settings_path, {"settings": asdict(settings)})
        with _open_for_lines(path) as file:
            questions = set(kept.values())
            yield AnswersFile(path, settings, set(kept), set(left_out), questions, file)


def _check_settings(path: Path, settings_path: Path, settings: GenerationSettings) -> None:
    """Check that the answers in a file were made with these settings."""
    if not settings_path.is_file():
        raise ValueError(
            f"{path} is no file of medusa distill ({settings_path.name} is missing): take another "
            "--output"
        )
    try:
        existing = asdict(read_json(settings_path, SettingsFile).settings)
    except ValueError as error:
        raise ValueError(
            f"{error}. It says how {path.name} was made: restore it, or take another --output"
        ) from None
    different = [name for name, value in asdict(settings).items() if existing[name] != value]
    if different:
        raise ValueError(
            f"{path} was begun with other settings ({', '.join(different)}): take another --output"
        )


def _left_out_path(path: Path) -> Path:
    return path.with_name(path.name + ".left-out")


def _read_lines(path: Path, schema: type[AnswerLine] | type[LeftOutLine]) -> dict[str, str]:
    """Return the names in a file of JSON lines, with the first questions.

    A last line that was not finished is repaired.
    """
    if not path.is_file():
        return {}
    names, complete_bytes, line = dict[str, str](), 0, b"\n"
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            complete_bytes += len(line)
            if line.strip():
                names |= _parse_line(line, schema, f"{path}, line {number}")
    if not line.endswith(b"\n"):
        names |= _repair_last_line(path, schema, complete_bytes, line)
    return names


def _repair_last_line(
    path: Path, schema: type[AnswerLine] | type[LeftOutLine], complete_bytes: int, last: bytes
) -> dict[str, str]:
    """Add the line break that a last line lacks and return its name; remove a broken last line."""
    try:
        name = _parse_line(last, schema, str(path))
    except ValueError:
        os.truncate(path, complete_bytes)
        return {}
    with path.open("ab") as file:
        file.write(b"\n")
    return name


def _parse_line(
    line: bytes, schema: type[AnswerLine] | type[LeftOutLine], place: str
) -> dict[str, str]:
    """Return the name and the first question of a line."""
    try:
        parsed = parse_json(line, schema, place, "the line")
        return {parsed.id: parsed.question}
    except ValueError as error:
        raise ValueError(
            f"{error}: delete the line, and its prompt is asked again, or take another --output"
        ) from None


def _open_for_lines(path: Path) -> BinaryIO:
    """Open a file to append lines. It is unbuffered, so that no part of a line is written late."""
    return path.open("ab", buffering=0)


def _write_line(file: BinaryIO, path: Path, content: dict[str, Any]) -> None:
    """Append a JSON line; if that fails, the file is restored."""
    line = json.dumps(content, ensure_ascii=False).encode("utf-8") + b"\n"
    size = os.fstat(file.fileno()).st_size
    try:
        while line:  # an unbuffered write may write only a part
            line = line[file.write(line) :]
    except OSError as error:
        file.truncate(size)
        raise OSError(error.errno, error.strerror, str(path)) from None
