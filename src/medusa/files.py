"""Small files: reading with errors that name file and field, atomic writing, and locks."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

SHOWN = 3
"""Problems of a file that an error message lists."""


class Schema(BaseModel):
    """Base class of schemas of JSON files.

    Types are strict: a number is not read as text, text not as a number, a boolean not as an
    integer, and NaN is not a number.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=BaseModel)


def cache_folder() -> Path:
    """Return the package's cache folder: $XDG_CACHE_HOME/medusa or ~/.cache/medusa.

    Its content can be deleted at any time.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "medusa"


def read_json(file: Path, schema: type[S]) -> S:
    """Return the content of a JSON file, checked against `schema`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or does not hold what the schema says; names the file and
            the fields.
    """
    return parse_json(file.read_bytes(), schema, str(file), "the whole file")


def parse_json(text: bytes, schema: type[S], place: str, whole: str) -> S:
    """Return what JSON holds, checked against `schema`.

    Args:
        place: where the text is, for errors.
        whole: what an error calls all of the text, such as "the whole file".

    Raises:
        ValueError: the text is not JSON, or does not hold what the schema says; names the place and
            the fields.
    """
    return _checked(partial(schema.model_validate_json, text), place, whole)


def parse_object(content: Any, schema: type[S], place: str, whole: str) -> S:
    """Return an object that was read from JSON, checked against `schema`; see `parse_json`."""
    return _checked(partial(schema.model_validate, content), place, whole)


def _checked(validate: Callable[[], S], place: str, whole: str) -> S:
    try:
        return validate()
    except ValidationError as error:
        problems = [_problem(each, whole) for each in error.errors(include_url=False)]
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"{place}: {'; '.join(problems[:SHOWN])}{more}") from None


def _problem(error: Any, whole: str) -> str:
    """One of pydantic's errors, as `paths[0][1]: what is wrong`."""
    if error["type"] == "json_invalid":
        return f"not JSON ({error['ctx']['error']})"
    field = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]
    ).lstrip(".")
    message = error["msg"].removeprefix("Value error, ")
    return f"{field or whole}: {message[:1].lower()}{message[1:]}"


def write_json(file: Path, content: Any, indent: int | None = None) -> None:
    """Write JSON to `file` atomically: a reader finds the old file or the complete new one.

    Raises:
        OSError: the file cannot be written; names it.
    """
    text = json.dumps(content, indent=indent) + "\n"
    try:
        with replacing(file) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(
            error.errno, error.strerror, str(file)
        ) from None  # the error of a full disk does not name the file


def check_writable(place: Path, *, folder: bool = False) -> None:
    """Check that a file, or the files of a folder, can be written, before the work it is to hold.

    The parent folder of a file is made if it is missing; with `folder`, nothing is made.

    Args:
        place: path of the file or the folder.
        folder: True if `place` is to be a folder.

    Raises:
        OSError: `place` cannot be written, or is a folder where a file is wanted, or the reverse;
            the message begins with `place`.
    """
    if folder and place.exists() and not place.is_dir():
        raise NotADirectoryError(f"{place} is a file: name a folder")
    if not folder and place.is_dir():
        raise IsADirectoryError(f"{place} is a folder: name a file")
    try:
        if folder:
            tempfile.TemporaryFile(dir=nearest_existing(place)).close()
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        if not _is_stream(place):
            tempfile.TemporaryFile(dir=Path(os.path.realpath(place)).parent).close()
    except OSError as error:
        raise OSError(f"{place} cannot be written to ({error.strerror})") from None


def nearest_existing(path: Path) -> Path:
    """Return the absolute `path`, or the nearest folder above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _is_stream(file: Path) -> bool:
    """Return True if a path is a pipe or a device, such as /dev/stdout; no file replaces it."""
    return file.exists() and not file.is_file() and not file.is_dir()


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield the path of an empty file beside `file`, which takes its place when the block ends
    without an error.

    After an error, such as a full disk, `file` is as it was. A link stays, and what it leads to is
    replaced. A pipe or a device is yielded itself.
    """
    if _is_stream(file):
        yield file
        return
    file = Path(os.path.realpath(file))
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".part")
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        _permit(beside, file)
        beside.replace(file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_all(folder: Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder, whose content moves into `folder` when the block ends without an
    error.

    After an error, in the block or while files move, `folder` is as before. Files in `folder` with
    other names stay.

    Args:
        folder: made if need be.
        last: names that move after all others, in this order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=".", suffix=".part", ignore_cleanup_errors=True
    ) as beside:
        new, old = Path(beside, "new"), Path(beside, "old")
        new.mkdir()
        old.mkdir()
        yield new
        for file in (each for each in new.rglob("*") if each.is_file()):
            _permit(file, folder / file.relative_to(new))
        names = sorted(os.listdir(new), key=lambda name: last.index(name) if name in last else -1)
        try:
            for name in names:
                _keep(folder / name, old / name)
                (new / name).replace(folder / name)
        except BaseException:
            for name in names:
                _put_back(new / name, folder / name, old / name)
            raise


def _keep(place: Path, old: Path) -> None:
    """Keep the file or folder at `place` as `old`. A file is also kept at its place."""
    if place.is_dir():
        place.rename(old)
    elif place.exists():
        try:
            os.link(place, old)
        except OSError:  # a file system without hard links
            shutil.copy2(place, old)


def _put_back(new: Path, place: Path, old: Path) -> None:
    if not new.exists():
        place.rename(new)
    if old.exists():
        old.rename(place)


def _permit(new: Path, place: Path) -> None:
    """Give a new file the permissions of the one that it replaces, or those of any new file."""
    new.chmod(place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~_umask())


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(
    place: Path, option: str = "--output", waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold `place`, a file or folder that is written to, for this process alone.

    The lock lies beside it, as `.NAME.lock`; the system frees it when the process ends, however it
    ends.

    Args:
        option: of the command line, which names another place.
        waiting: called where another process holds the place, before waiting until that process has
            ended.

    Raises:
        ValueError: another process holds it, and `waiting` is None.
    """
    place = place.absolute()
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting is None:
            raise ValueError(
                f"another process is writing to {place}: wait until it has ended, or write "
                f"elsewhere ({option})"
            ) from None
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
