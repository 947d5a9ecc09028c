"""Readers of data sources: JSON lines, JSON, text, Parquet, folders of these, and hub datasets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".txt")
SETTINGS = ".settings.json"
"""Suffix of the settings files that `medusa distill` writes beside answers; never read as data."""
BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""Byte order mark; some programs write it before UTF-8 text. It is removed."""


@dataclass(frozen=True)
class Record:
    """One entry of a data source: a line, a JSON object or a table row.

    Attributes:
        content: a JSON object, a text, or any other JSON value.
        place: location for messages, such as "chats.jsonl, line 3".
        problem: reason why the entry could not be read; empty if it could.
        reported: unread fields that were already reported; shared by all records of a file.
    """

    content: Any
    place: str
    problem: str = ""
    reported: set[str] = field(default_factory=set, compare=False, repr=False)


def read_records(source: str, split: str = "train") -> Iterator[Record]:
    """Yield the records of a file, of a folder's files by name, or of a hub dataset.

    An unreadable line is yielded as a record with a problem, so that the caller decides whether to
    stop or to skip it.

    Args:
        source: path of a file or a folder, or id of a dataset on the hub (owner/name).
        split: split of a hub dataset.

    Raises:
        FileNotFoundError: `source` is neither a file, a folder nor a dataset id.
        ValueError: the source is empty, of an unknown type, or unreadable.
        ImportError: the source is Parquet or a dataset, and the library `datasets` is missing.
    """
    empty = True
    for record in _read_source(source, split):
        empty = False
        yield record
    if empty:
        raise ValueError(f"{source} is empty: there are no prompts, chats or texts in it")


def _read_source(source: str, split: str) -> Iterator[Record]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(
            file
            for file in path.iterdir()
            if file.name.endswith(SUFFIXES) and not file.name.endswith(SETTINGS)
        )
        if not files:
            raise ValueError(f"{source} holds no file that ends in {', '.join(SUFFIXES)}")
        for file in files:
            yield from _read_file(file)
    elif path.is_file():
        yield from _read_file(path)
    else:
        yield from _read_dataset(source, split)


def _read_file(file: Path) -> Iterator[Record]:
    if file.suffix == ".parquet":
        return _read_parquet(file)
    if file.suffix == ".jsonl" or file.name.endswith(".jsonl.gz"):
        return _read_json_lines(file)
    if file.suffix == ".json":
        return _read_json(file)
    if file.suffix == ".txt":
        return _read_text(file)
    raise ValueError(
        f"{file}: files that end in {', '.join(SUFFIXES)} are read, not {file.suffix or 'others'}"
    )


def _read_json_lines(file: Path) -> Iterator[Record]:
    """Yield a record for each line of JSON."""
    reported: set[str] = set()
    # Only \n ends a line: JSON strings may contain other line breaks, such as U+2028.
    for number, (line, problem) in enumerate(_read_lines(file, "\n"), start=1):
        place = f"{file.name}, line {number}"
        if problem:
            yield Record(None, place, problem)
        elif line.strip():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Record(None, place, _json_problem(error))
            else:
                yield Record(content, place, reported=reported)


def _read_text(file: Path) -> Iterator[Record]:
    """Yield a record for each line that is not blank; line numbers do not count blank lines."""
    filled = (
        (line.rstrip("\n"), problem)
        for line, problem in _read_lines(file, None)
        if problem or line.strip()
    )
    for number, (line, problem) in enumerate(filled, start=1):
        yield Record(None if problem else line, f"{file.name}, line {number}", problem)


def _read_lines(file: Path, newline: str | None) -> Iterator[tuple[str, str]]:
    """Yield (line, problem) pairs; the line is empty where there is a problem."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8", errors="surrogateescape", newline=newline) as opened:
        for number, line in enumerate(opened):
            try:
                line.encode()  # surrogateescape reads a byte that is not UTF-8 as a surrogate
            except UnicodeEncodeError as error:
                if number == 0 and error.start == 0:  # another encoding, such as UTF-16
                    raise ValueError(f"{file} is not UTF-8 text: save it as UTF-8") from None
                yield "", f"not UTF-8 text (character {error.start + 1})"
            else:
                yield line.removeprefix(BOM), ""


def _read_json(file: Path) -> Iterator[Record]:
    """Yield the objects of a JSON list, or the one object of a file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8").removeprefix(BOM))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: {_json_problem(error)}; files with one object a line must end in .jsonl"
        ) from None
    return _numbered(content if isinstance(content, list) else [content], file.name, "record")


def _json_problem(error: Exception) -> str:
    return (
        "JSON that is nested too deeply"
        if isinstance(error, RecursionError)
        else f"not JSON ({error})"
    )


def _read_parquet(file: Path) -> Iterator[Record]:
    try:
        rows = _import_datasets().load_dataset("parquet", data_files=str(file), split="train")
    except ImportError:
        raise
    except Exception as error:  # datasets, pyarrow and fsspec each raise errors of their own
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from None
    return _numbered(rows, file.name, "row")


def _read_dataset(name: str, split: str) -> Iterator[Record]:
    if name.count("/") != 1 or Path(name).suffix:
        raise FileNotFoundError(
            f"no file or folder {name}: give one that ends in {', '.join(SUFFIXES)}, a folder of "
            "them, or a dataset's name (owner/name)"
        )
    rows = _import_datasets().load_dataset(name, split=split, streaming=True)
    return _numbered(rows, name, "row")


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError(
            "Parquet files and hub datasets need the library `datasets`: pip install datasets"
        ) from None
    return datasets


def _numbered(contents: Iterable[Any], name: str, unit: str) -> Iterator[Record]:
    reported: set[str] = set()
    for number, content in enumerate(contents, start=1):
        yield Record(content, f"{name}, {unit} {number}", reported=reported)
