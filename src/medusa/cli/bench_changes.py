"""What `medusa bench compare` prints."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from ..evaluation.changes import Change, changes, different_settings, read_report
from .streams import console


def show(before: Path, after: Path) -> None:
    """Print the settings that differ, and the changes of all methods.

    Raises:
        FileNotFoundError, ValueError: see `read_report` and `changes`.
    """
    old, new = read_report(before), read_report(after)
    screen = console()
    for line in different_settings(old, new):
        screen.print(f"other settings: {line}", highlight=False, markup=False)
    table = Table(
        *("method", "figure", "turns", "after / before", "95 % interval", ""),
        title=f"{after} against {before}: medians over turns",
    )
    for change in changes(old, new):
        table.add_row(*cells(change))
    screen.print(table)


def cells(change: Change) -> tuple[str, ...]:
    """Return a change as texts."""
    verdict = "no certain change"
    if change.certain:
        verdict = "higher" if change.ratio > 1 else "lower"
    return (
        change.method,
        change.figure,
        str(change.turns),
        f"{change.ratio:.3f}",
        f"{change.low:.3f} to {change.high:.3f}",
        verdict,
    )
