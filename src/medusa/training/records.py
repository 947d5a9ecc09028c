"""Records from where they lie: JSON lines, JSON, text, Parquet, folders of these, and datasets on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")


@dataclass(frozen=True)
class Record:
    """What a source holds at one place.

    Attributes:
        content: an object, a text, or whatever else the file has there.
        place: where that is, for messages: "chats.jsonl, line 3".
        problem: why there is no content; empty where there is.
    """

    content: Any
    place: str
    problem: str = ""


def read_records(source: str, split: str = "train") -> Iterator[Record]:
    """The records of a file, of all files of a folder in the order of their names, or of a dataset on the hub.

    Lines that are not JSON come as records with a problem, so that the caller decides what one bad line costs.

    Raises:
        FileNotFoundError: there is no such file or folder, and it is no dataset's name.
        ValueError: the file is of another kind, or cannot be read; says what to do.
        ImportError: Parquet or a dataset is asked for, and the library `datasets` is not installed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES)
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
        try:
            rows = _datasets().load_dataset("parquet", data_files=str(file), split="train")
        except ImportError:
            raise
        except Exception as error:  # several libraries' own
            raise ValueError(f"{file} cannot be read as Parquet: {error}") from None
        return _numbered(rows, file.name, "row")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if file.suffix == ".jsonl":
        return _lines(text, file.name)
    if file.suffix == ".json":
        return _whole(text, file)
    if file.suffix == ".txt":
        return _numbered((line for line in text.splitlines() if line.strip()), file.name, "line")
    raise ValueError(f"{file}: files that end in {', '.join(SUFFIXES)} are read, not {file.suffix or 'others'}")


def _lines(text: str, name: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):  # other line breaks may stand inside strings
        if line.strip():
            place = f"{name}, line {number}"
            try:
                yield Record(json.loads(line), place)
            except ValueError as error:
                yield Record(None, place, f"not JSON ({error})")


def _whole(text: str, file: Path) -> Iterator[Record]:
    try:
        told = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); one object a line belongs in a .jsonl file") from None
    return _numbered(told if isinstance(told, list) else [told], file.name, "record")


def _dataset(name: str, split: str) -> Iterator[Record]:
    if name.count("/") != 1 or Path(name).suffix:
        raise FileNotFoundError(
            f"no file or folder {name}: give one that ends in {', '.join(SUFFIXES)}, a folder of them, "
            "or a dataset's name (owner/name)"
        )
    return _numbered(_datasets().load_dataset(name, split=split, streaming=True), name, "row")


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise ImportError("Parquet files and hub datasets need the library `datasets`: pip install datasets") from None
    return datasets


def _numbered(contents: Iterable[Any], name: str, unit: str) -> Iterator[Record]:
    return (Record(content, f"{name}, {unit} {number}") for number, content in enumerate(contents, start=1))
