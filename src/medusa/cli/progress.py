"""Progress of long commands: a bar on a terminal, lines in a log or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..training import distill as distillation

LOG_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""
SHOWN = 5
"""Maximum number of refused conversations that are printed."""


@contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr; yield a function that advances it by a number of parts."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda parts: progress.advance(task, parts)


@contextmanager
def watching(console: Console) -> Iterator[Callable[[distillation.DistillProgress], None]]:
    """Yield a function that shows the progress of a distillation.

    On a terminal it shows a bar, elsewhere a line every `LOG_EVERY` seconds.
    """
    started = last_line = time.monotonic()
    refused = 0

    def print_refused(progress: distillation.DistillProgress) -> None:
        nonlocal refused
        for problem in progress.refused[refused:SHOWN]:
            say(console, f"refused: {problem}")
        refused = len(progress.refused)

    def log(progress: distillation.DistillProgress) -> None:
        nonlocal last_line
        print_refused(progress)
        now = time.monotonic()
        if now - last_line >= LOG_EVERY or progress.done == progress.total:
            last_line = now
            say(console, status(progress, now - started))

    if not console.is_terminal:
        yield log
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console) as shown:
        task = shown.add_task("conversations")

        def show(progress: distillation.DistillProgress) -> None:
            print_refused(progress)
            line = status(progress, time.monotonic() - started)
            shown.update(task, description=line, completed=progress.done, total=progress.total)

        yield show


def status(progress: distillation.DistillProgress, seconds: float) -> str:
    """Return a line about a distillation: what is done, its speed, and the time that is left.

    Args:
        seconds: time since this run began. Conversations of earlier runs do not count for the
            speed.
    """
    in_this_run = progress.done - progress.earlier
    parts = [f"{progress.done}/{progress.total} conversations"]
    if in_this_run and seconds > 0:
        left = timedelta(seconds=round(seconds / in_this_run * (progress.total - progress.done)))
        parts += [f"{progress.tokens / seconds:.0f} tokens/s", f"{left} left"]
    if progress.refused:
        parts.append(f"{len(progress.refused)} refused")
    return ", ".join(parts)


def say(console: Console, line: str) -> None:
    """Print a line as it is, without markup and line breaks."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)
