"""Errors of commands: one line on stderr and the exit status."""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer

from .parameters import option, parameters, with_signature

FAILED, INTERRUPTED = 1, 130
"""Exit statuses; 130 is what shells report for a process that Ctrl-C ended."""


@dataclass(frozen=True, kw_only=True)
class ErrorOptions:
    """Options that choose how errors are reported."""

    verbose: bool = option("Show the traceback of an error", "--verbose", default=False)


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command with the option `--verbose`, whose errors `reported` reports."""

    def called(*, verbose: bool, **values: Any) -> None:
        with reported(verbose):
            command(**values)

    own = inspect.signature(command).parameters.values()
    return with_signature(called, command, [*own, *parameters("errors", ErrorOptions)])


@contextmanager
def reported(verbose: bool) -> Iterator[None]:
    """Print an error as one line on stderr and exit with status 1, or with 130 after Ctrl-C.

    Errors that typer reports itself pass through: usage errors, which exit with status 2, and an
    output that nobody reads.

    Args:
        verbose: print the traceback instead of the line.
    """
    # On a CPU, bitsandbytes logs that it lacks GPU kernels, which nothing here needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        yield
    except (BrokenPipeError, typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if is_interrupt(error):
            typer.echo(err=True)
            raise typer.Exit(INTERRUPTED) from None
        if verbose:
            traceback.print_exc()
        else:
            typer.echo(one_line(error), err=True)
        raise typer.Exit(FAILED) from None


def is_interrupt(error: BaseException | None) -> bool:
    """Return True if Ctrl-C caused an error.

    Libraries may wrap the KeyboardInterrupt: transformers raises a ModuleNotFoundError where it is
    interrupted while it imports a module.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(error: BaseException) -> str:
    """Return the line that reports an error.

    The library raises ValueError, OSError and ImportError for what a user can put right, and its
    messages say how. For any other error the line names `--verbose`, because only the traceback
    may help.
    """
    kind, message = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError, ImportError)):
        return f"error: {message or kind}"
    if isinstance(error, (RuntimeError, MemoryError)):  # such as too little memory
        return f"error: {message or kind} (--verbose shows the traceback)"
    described = f"{kind}: {message}" if message else kind
    return f"error: unexpected {described}; --verbose shows the traceback, please report it"
