"""Helpers for small files: validated JSON, atomic writes, and locks between processes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

MAX_LISTED_PROBLEMS = 3
"""Maximum number of a file's problems that an error message lists."""


class Schema(BaseModel):
    """Base class for the schema of a JSON file.

    Types are strict: the number 1 is not accepted as a string, "1" not as a number, `true` not as
    an integer, and NaN not as a number.
    """

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=BaseModel)


def read_json(file: Path, schema: type[S]) -> S:
    """Return the content of a JSON file, validated against `schema`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON or does not match the schema. The message names the file
            and the fields.
    """
    return parse_json(file.read_bytes(), schema, str(file), "the whole file")


def parse_json(text: bytes, schema: type[S], place: str, whole: str) -> S:
    """Return the content of a JSON text, validated against `schema`.

    Args:
        text: the JSON, encoded as UTF-8.
        place: location of the text, such as a path; error messages begin with it.
        whole: name of the entire text in error messages, such as "the whole file".

    Raises:
        ValueError: the text is not JSON or does not match the schema. The message names the place
            and the fields.
    """
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        problems = [_describe(details, whole) for details in error.errors(include_url=False)]
        unlisted = len(problems) - MAX_LISTED_PROBLEMS
        more = f"; and {unlisted} more" if unlisted > 0 else ""
        raise ValueError(f"{place}: {'; '.join(problems[:MAX_LISTED_PROBLEMS])}{more}") from None


def _describe(error: Any, whole: str) -> str:
    """Return one pydantic error as text, such as `paths[0][1]: input should be an integer`."""
    if error["type"] == "json_invalid":
        return f"not JSON ({error['ctx']['error']})"
    field = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]
    ).lstrip(".")
    message = error["msg"].removeprefix("Value error, ")
    return f"{field or whole}: {message[:1].lower()}{message[1:]}"


def write_json(file: Path, content: Any, indent: int | None = None) -> None:
    """Write JSON and a final newline to `file`, atomically.

    A reader sees either the old file or the new one, never a part of it.

    Raises:
        OSError: the file cannot be written. The message names the file.
    """
    text = json.dumps(content, indent=indent) + "\n"
    try:
        with replacing(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        # The error of a full disk does not name a file.
        raise OSError(error.errno, error.strerror, str(file)) from None


def check_writable(file: Path) -> None:
    """Create the folder of `file` and check that `file` can be written.

    Commands call this before long work, so that a wrong output path fails at once.

    Raises:
        OSError: the folder cannot be created, no file can be written in it, or `file` is a folder.
            The message names `file`.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder: name a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not _is_stream(file):
            tempfile.TemporaryFile(dir=Path(os.path.realpath(file)).parent).close()
    except OSError as error:
        raise OSError(f"{file} cannot be written: {error.strerror}") from None


def _is_stream(file: Path) -> bool:
    """Return True if a path is a pipe or a device, such as /dev/stdout."""
    return file.exists() and not file.is_file() and not file.is_dir()


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file that replaces `file` when the block succeeds.

    The temporary file is in the folder of `file`. If the block raises an error, `file` is
    unchanged. If `file` is a symbolic link, its target is replaced and the link is kept. If it is a
    pipe or a device, which cannot be replaced, its own path is yielded.
    """
    if _is_stream(file):
        yield file
        return
    file = Path(os.path.realpath(file))
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _copy_permissions(file, temporary)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing_all(folder: Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder whose content moves into `folder` when the block succeeds.

    Files of `folder` with the same names are replaced; other files stay. If the block or a move
    raises an error, `folder` is restored to its previous state.

    Args:
        folder: the destination; created if it does not exist.
        last: names that move after all others, in this order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=".", suffix=".part", ignore_cleanup_errors=True
    ) as temporary:
        new, backup = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        backup.mkdir()
        yield new
        for file in (path for path in new.rglob("*") if path.is_file()):
            _copy_permissions(folder / file.relative_to(new), file)
        names = sorted(os.listdir(new), key=lambda name: last.index(name) if name in last else -1)
        try:
            for name in names:
                _back_up(folder / name, backup / name)
                (new / name).replace(folder / name)
        except BaseException:
            for name in names:
                _restore(new / name, folder / name, backup / name)
            raise


def _back_up(target: Path, backup: Path) -> None:
    """Move the folder `target` to `backup`, or give the file `target` a second link there.

    A file keeps its old name as well, so that readers find it at all times.
    """
    if target.is_dir():
        target.rename(backup)
    elif target.exists():
        try:
            os.link(target, backup)
        except OSError:  # the file system has no hard links
            shutil.copy2(target, backup)


def _restore(new: Path, target: Path, backup: Path) -> None:
    """Undo the move of `new` to `target`, and put the backup of `target` back."""
    if not new.exists():
        target.rename(new)
    if backup.exists():
        backup.rename(target)


def _copy_permissions(old: Path, new: Path) -> None:
    """Give `new` the permissions of `old`, or the default ones if `old` does not exist.

    `tempfile` creates files that only their owner can read.
    """
    new.chmod(old.stat().st_mode & 0o777 if old.exists() else 0o666 & ~_umask())


def _umask() -> int:
    """Return the process's umask. The only way to read it is to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def locked(
    place: Path, option: str = "--output", waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold an exclusive lock on `place`, a file or folder that this process writes to.

    The lock is the file `.NAME.lock` in the same folder. The operating system releases the lock
    when the process ends, even if the process is killed.

    Args:
        place: the file or folder; it need not exist yet.
        option: command-line option that sets `place`; the error message suggests it.
        waiting: called if another process holds the lock; afterwards this function waits until the
            lock is free.

    Raises:
        ValueError: another process holds the lock, and `waiting` is None.
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
