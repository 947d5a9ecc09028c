"""Progress display of long phases: a bar on a terminal, a line from time to time elsewhere."""

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

LOG_INTERVAL = 20.0
"""Seconds between two lines in a log or pipe; a phase that ends sooner prints no line."""
Advance = Callable[[int], None]
"""Function that is called with the number of units done since its last call."""
Describe = Callable[[int, float], str]
"""Function of the units done and the seconds since the start; returns a line of progress."""


@contextmanager
def progress(
    label: str,
    total: int | None,
    unit: str,
    say: Callable[[str], None] | None = None,
    shown: bool = True,
    describe: Describe | None = None,
    console: Console | None = None,
) -> Iterator[Advance]:
    """Show the progress of a phase; yield the function that reports units as done.

    Args:
        label: name of the phase, such as "hidden states".
        total: number of units in the phase; None if unknown.
        unit: what is counted, in the plural.
        say: prints a line where standard error is not a terminal; by default to standard error.
        shown: False displays nothing, as in all but one of several processes.
        describe: makes the line of progress; by default it has the units, the rate and the time
            left. On a terminal this line is the bar's label.
        console: shows the bar; by default standard error.
    """
    console = console or Console(stderr=True)
    if not shown:
        yield lambda done: None
    elif console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=True)
        times = TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, *times, console=console, transient=True) as bar:
            yield _bar_advance(bar, label, total, describe)
    else:
        if say is None:
            say = lambda line: console.print(line, soft_wrap=True, highlight=False)  # noqa: E731
        log = _ProgressLog(label, total, unit, say, describe)
        yield log.advance
        log.end()


def _bar_advance(
    bar: Progress, label: str, total: int | None, describe: Describe | None
) -> Advance:
    """Add a task to a bar; return the function that advances it."""
    task = bar.add_task(label, total=total)
    begun = time.monotonic()
    count = 0

    def advance(done: int) -> None:
        nonlocal count
        count += done
        bar.advance(task, done)
        if describe is not None:
            bar.update(task, description=describe(count, time.monotonic() - begun))

    return advance


class _ProgressLog:
    """A counter of units that prints a line at most every `LOG_INTERVAL` seconds."""

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str,
        say: Callable[[str], None],
        describe: Describe | None,
    ):
        self.label, self.total, self.unit, self.say = label, total, unit, say
        self.describe = describe or self._describe
        self.done = 0
        self.begun = self.last = time.monotonic()

    def advance(self, done: int) -> None:
        self.done += done
        now = time.monotonic()
        if now - self.last >= LOG_INTERVAL:
            self.last = now
            self.say(self.describe(self.done, now - self.begun))

    def end(self) -> None:
        """Print the total, if the phase was long enough to print a line before."""
        seconds = time.monotonic() - self.begun
        if self.last > self.begun and self.describe != self._describe:
            self.say(self.describe(self.done, seconds))
        elif self.last > self.begun:
            self.say(f"{self.label}: {self.done:,} {self.unit} in {_clock(seconds)}")

    def _describe(self, done: int, seconds: float) -> str:
        rate = done / seconds
        whole = "" if self.total is None else f" of {self.total:,}"
        left = f", {_clock((self.total - done) / rate)} left" if self.total and rate else ""
        speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"
        return f"{self.label}: {done:,}{whole} {self.unit}, {speed} a second{left}"


def _clock(seconds: float) -> timedelta:
    return timedelta(seconds=max(0, round(seconds)))
