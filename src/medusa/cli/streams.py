"""Standard input and output as every command expects them, whatever the shell or the locale made of
them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import Any, TextIO

from rich.console import Console
from typer.core import TyperGroup

PIPED_WIDTH = 124
"""Least number of columns of a table that goes to a file or pipe."""


class Commands(TyperGroup):
    """The commands, run with usable standard streams."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        prepare()
        failed = False
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            failed = bool(ended.code)
            raise
        except (
            OSError
        ) as error:  # commands report their own; this one comes from printing help or a usage error
            failed = True
            print(f"error: standard output: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        finally:
            finish(failed)


def prepare() -> None:
    """Make the three standard streams usable.

    A closed stream becomes an empty or a silent one. Input is read as UTF-8; `as_text` checks it.
    Characters that the output's encoding does not have are replaced, so that an ASCII terminal
    stops no command. Warnings take one line.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except (
            OSError
        ):  # a file that is opened later would get its number, and be written to by mistake
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 (open as long as the process)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    _reconfigure(sys.stdin, encoding="utf-8", errors="surrogateescape")
    _reconfigure(sys.stdout, errors="replace")
    _reconfigure(sys.stderr, errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: (
        f"warning: {' '.join(str(message).split())}\n"
    )


def _reconfigure(stream: TextIO, **options: str) -> None:
    with contextlib.suppress(
        AttributeError, ValueError, OSError
    ):  # not every stand-in can change, such as StringIO
        stream.reconfigure(**options)  # type: ignore[attr-defined]


def finish(failed: bool) -> None:
    """Write out what standard output still holds; exit with status 1 and one line where that cannot
    be done.

    The stream then leads nowhere, or Python would try again as it ends, and print a traceback.

    Args:
        failed: whether the command has failed, so that its own error stands.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not failed:
            if not isinstance(error, BrokenPipeError):
                print(f"error: standard output: {error}", file=sys.stderr)
            raise SystemExit(1) from None


def as_text(text: str, place: str) -> str:
    """Return text that came from outside, without a byte order mark.

    Bytes that Python could not decode stand in it as lone surrogates; they are read as UTF-8.

    Raises:
        ValueError: they are not UTF-8; names `place`.
    """
    try:
        return (
            text.encode("utf-8", "surrogateescape")
            .decode("utf-8")
            .removeprefix("\N{BYTE ORDER MARK}")
        )
    except UnicodeError as error:
        raise ValueError(
            f"{place} is not UTF-8 text ({error}): convert it, such as with iconv -t UTF-8"
        ) from None


def console() -> Console:
    """Return a console for standard output in which tables have room where no terminal limits
    them.
    """
    shown = Console()
    if not shown.is_terminal:
        shown.width = max(shown.width, PIPED_WIDTH)
    return shown
