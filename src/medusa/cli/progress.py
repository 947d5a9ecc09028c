"""Progress of `medusa distill`: a bar on a terminal, lines in a log or a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from ..training.progress import progress as shown_progress

if TYPE_CHECKING:
    from ..training.distill import DistillProgress

SHOWN = 5
"""Maximum number of refused conversations that are printed."""


@contextmanager
def watching(console: Console, total: int) -> Iterator[Callable[[DistillProgress], None]]:
    """Yield a function that shows the progress of a distillation.

    Args:
        total: number of conversations requested.
    """
    latest: DistillProgress | None = None
    done = printed = 0

    def describe(_: int, seconds: float) -> str:
        return name if latest is None else status(latest, seconds)

    def watch(progress: DistillProgress) -> None:
        nonlocal latest, done, printed
        for problem in progress.refused[printed:SHOWN]:
            say(console, f"refused: {problem}")
        # the same object each time, so its counts are kept apart
        new, done, printed = progress.done - done, progress.done, len(progress.refused)
        latest = progress
        advance(new)

    name, print_line = "conversations", partial(say, console)
    with shown_progress(
        name, total, name, print_line, describe=describe, console=console
    ) as advance:
        yield watch


def status(progress: DistillProgress, seconds: float) -> str:
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
