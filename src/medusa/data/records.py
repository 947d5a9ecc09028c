"""Records from where they lie: JSON lines, JSON, text, Parquet, folders of these, and datasets on
the hub.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
SETTINGS = ".settings.json"
"""End of the files that `medusa distill` keeps beside its answers; they are no data."""
BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""The byte order mark that some programs write in front of UTF-8 text; it is no part of the text.
"""


@dataclass(frozen=True)
class Record:
    """What a source holds at one place.

    Attributes:
        content: an object, a text, or whatever else the file has there.
        place: where that is, for messages: "chats.jsonl, line 3".
        problem: why there is no content; empty where there is.
        reported: fields that the user has been told are not read; all records of a file share this
            set.
    """

    content: Any
    place: str
    problem: str = ""
    reported: set[str] = field(default_factory=set, compare=False, repr=False)


def read_records(source: str, split: str = "train") -> Iterator[Record]:
    """Yield the records of a file, of a folder's files in the order of their names, or of a dataset
    on the hub.

    A line that cannot be read comes as a record with a problem, so that the caller decides what one
    bad line costs.

    Raises:
        FileNotFoundError: there is no such file or folder, and it is no dataset's name.
        ValueError: the source is empty, of another kind, or cannot be read; says what to do.
        ImportError: Parquet or a dataset is asked for, and the library `datasets` is not installed.
    """
    empty = True
    for record in _all(source, split):
        empty = False
        yield record
    if empty:
        raise ValueError(f"{source} is empty: there are no prompts, chats or texts in it")


def _all(source: str, split: str) -> Iterator[Record]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(
            each
            for each in path.iterdir()
            if each.suffix in SUFFIXES and not each.name.endswith(SETTINGS)
        )
        if not files:
            raise ValueError(f"{source} holds no file that ends in {', '.join(SUFFIXES)}")
        for file in files:
            yield from _file(file)
    elif path.is_file():
        yield from _file(path)
    else:
        yield from _dataset(source, split)


def _file(file: Path) -> Iterator[Record]:
    if file.suffix == ".parquet":
        return _parquet(file)
    if file.suffix == ".jsonl":
        return _objects(file)
    if file.suffix == ".json":
        return _whole(file)
    if file.suffix == ".txt":
        return _texts(file)
    raise ValueError(
        f"{file}: files that end in {', '.join(SUFFIXES)} are read, not {file.suffix or 'others'}"
    )


def _objects(file: Path) -> Iterator[Record]:
    """Yield a record for each line of JSON; other line breaks than a newline may stand inside
    strings.
    """
    reported: set[str] = set()
    for number, (line, problem) in enumerate(_lines(file, "\n"), start=1):
        place = f"{file.name}, line {number}"
        if problem:
            yield Record(None, place, problem)
        elif line.strip():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Record(None, place, _no_json(error))
            else:
                yield Record(content, place, reported=reported)


def _texts(file: Path) -> Iterator[Record]:
    """Yield a record for each line that is not blank; they are numbered without the blank ones."""
    filled = (
        (line.rstrip("\n"), problem)
        for line, problem in _lines(file, None)
        if problem or line.strip()
    )
    for number, (line, problem) in enumerate(filled, start=1):
        yield Record(None if problem else line, f"{file.name}, line {number}", problem)


def _lines(file: Path, newline: str | None) -> Iterator[tuple[str, str]]:
    """Yield each line, or an empty one with what is wrong with it."""
    with file.open(encoding="utf-8", errors="surrogateescape", newline=newline) as opened:
        for number, line in enumerate(opened):
            try:
                line.encode()  # a byte that is not UTF-8 was read as a surrogate
            except UnicodeEncodeError as error:
                if (
                    number == 0 and error.start == 0
                ):  # nothing of it is UTF-8, such as a file in UTF-16
                    raise ValueError(f"{file} is not UTF-8 text: save it as UTF-8") from None
                yield "", f"not UTF-8 text (character {error.start + 1})"
            else:
                yield line.removeprefix(BOM), ""


def _whole(file: Path) -> Iterator[Record]:
    try:
        told = json.loads(file.read_text(encoding="utf-8").removeprefix(BOM))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file}: {_no_json(error)}; one object a line belongs in a .jsonl file"
        ) from None
    return _numbered(told if isinstance(told, list) else [told], file.name, "record")


def _no_json(error: Exception) -> str:
    return (
        "JSON that is nested too deeply"
        if isinstance(error, RecursionError)
        else f"not JSON ({error})"
    )


def _parquet(file: Path) -> Iterator[Record]:
    try:
        rows = _datasets().load_dataset("parquet", data_files=str(file), split="train")
    except ImportError:
        raise
    except Exception as error:  # several libraries' own
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from None
    return _numbered(rows, file.name, "row")


def _dataset(name: str, split: str) -> Iterator[Record]:
    if name.count("/") != 1 or Path(name).suffix:
        raise FileNotFoundError(
            f"no file or folder {name}: give one that ends in {', '.join(SUFFIXES)}, a folder of "
            "them, "
            "or a dataset's name (owner/name)"
        )
    return _numbered(_datasets().load_dataset(name, split=split, streaming=True), name, "row")


def _datasets() -> Any:
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
