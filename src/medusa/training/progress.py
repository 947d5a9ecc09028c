"""Progress of long phases: a bar on a terminal, a line every so often in a log or pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

EVERY = 20.0
"""Seconds between two lines; a phase that ends sooner prints none."""
Advance = Callable[[int], None]


@contextmanager
def progress(
    label: str,
    total: int | None,
    unit: str,
    say: Callable[[str], None] | None = None,
    shown: bool = True,
) -> Iterator[Advance]:
    """Yield a function that is called with the units done since its last call, and show how far
    they have come.

    Args:
        label: what is under way, such as "hidden states".
        total: units in all; None where that is not known.
        unit: what is counted, in the plural.
        say: prints a line where standard error is no terminal; by default to standard error.
        shown: False shows nothing, as in all but one of several processes.
    """
    console = Console(stderr=True)
    if not shown:
        yield lambda done: None
    elif console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=True)
        times = TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, *times, console=console, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.advance(task, done)
    else:
        lines = _Lines(
            label,
            total,
            unit,
            say or (lambda line: console.print(line, soft_wrap=True, highlight=False)),
        )
        yield lines.advance
        lines.end()


class _Lines:
    """Counts units and says how many there were, at most every `EVERY` seconds."""

    def __init__(self, label: str, total: int | None, unit: str, say: Callable[[str], None]):
        self.label, self.total, self.unit, self.say = label, total, unit, say
        self.done = 0
        self.begun = self.last = time.monotonic()

    def advance(self, done: int) -> None:
        self.done += done
        now = time.monotonic()
        if now - self.last >= EVERY:
            self.last = now
            rate = self.done / (now - self.begun)
            whole = "" if self.total is None else f" of {self.total:,}"
            left = (
                f", {_clock((self.total - self.done) / rate)} left" if self.total and rate else ""
            )
            pace = f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"
            self.say(f"{self.label}: {self.done:,}{whole} {self.unit}, {pace} a second{left}")

    def end(self) -> None:
        """Say what it took, if it took long enough to have said anything."""
        if self.last > self.begun:
            self.say(
                f"{self.label}: {self.done:,} {self.unit} in "
                f"{_clock(time.monotonic() - self.begun)}"
            )


def _clock(seconds: float) -> timedelta:
    return timedelta(seconds=max(0, round(seconds)))
