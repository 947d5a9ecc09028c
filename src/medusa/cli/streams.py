"""Standard streams that every command can use, whatever the shell and the locale set up."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from typing import Any, TextIO

import typer
from rich.console import Console
from typer.core import TyperGroup

PIPED_WIDTH = 124
"""Minimum width, in columns, of a table that goes to a file or a pipe."""


class Commands(TyperGroup):
    """The group of all commands, which run with usable standard streams."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        prepare()
        failed = False
        try:
            return super().main(*args, **kwargs)
        except SystemExit as ended:
            failed = bool(ended.code)
            raise
        except OSError as error:
            # Commands report their own errors. This one comes from printing help or a usage error.
            failed = True
            print(f"error: standard output: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        finally:
            finish(failed)


class RunByDefault(TyperGroup):
    """A group of commands whose command `run` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


def prepare() -> None:
    """Make the three standard streams usable.

    A closed input becomes an empty one, and a closed output is discarded. Input is read as UTF-8;
    bytes that are no UTF-8 become lone surrogates, which `as_text` finds. Characters that the
    encoding of an output lacks are replaced, so that no command fails on an ASCII terminal.
    Warnings take one line.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # Otherwise a file opened later would get the number of the closed stream, and what is
            # meant for that stream would be written into the file.
            os.open(os.devnull, os.O_RDWR)
    # These stay open as long as the process runs.
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    _reconfigure(sys.stdin, encoding="utf-8", errors="surrogateescape")
    _reconfigure(sys.stdout, errors="replace")
    _reconfigure(sys.stderr, errors="backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: (
        f"warning: {' '.join(str(message).split())}\n"
    )


def _reconfigure(stream: TextIO, **options: str) -> None:
    # A stream that a caller put in place, such as a StringIO, may not be reconfigurable.
    with contextlib.suppress(AttributeError, ValueError, OSError):
        stream.reconfigure(**options)  # type: ignore[attr-defined]


def finish(failed: bool) -> None:
    """Flush standard output; exit with status 1 and an error of one line if that fails.

    After a failure, standard output is redirected to the null device. Otherwise Python would flush
    it again at exit and print a traceback.

    Args:
        failed: True if the command has failed; its own error is then the only one reported.
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
    """Return text from outside the program, checked to be UTF-8 and without a byte order mark.

    Python decodes bytes that do not fit its encoding to lone surrogates. They are turned back into
    bytes and read as UTF-8.

    Args:
        place: where the text comes from, for the error.

    Raises:
        ValueError: the bytes are not UTF-8; names `place`.
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


def note(text: str) -> None:
    """Write a line that is not a result to stderr, dim on a terminal."""
    dim = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    typer.echo(typer.style(text, dim=True) if dim else text, err=True)


def console() -> Console:
    """Return a console for standard output; without a terminal it is wide enough for any table."""
    screen = Console()
    if not screen.is_terminal:
        screen.width = max(screen.width, PIPED_WIDTH)
    return screen
