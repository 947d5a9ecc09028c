"""The report of `medusa calibrate` as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ..calibration.report import Report

RANKS = 5
"""Number of ranks in the table of accuracies."""


def show(screen: Console, report: Report) -> None:
    """Print the report as tables."""
    plus_minus = "+-" if screen.options.ascii_only else "±"
    for table in (_accuracies(report, plus_minus), _sizes(report), _heads(report)):
        screen.print(table)
    screen.print(_chosen_tree(report))
    if report.metadata["compiled"]:
        screen.print("Compiled steps are faster here: they are used from now on.")
    if not report.tree.max_depth:
        screen.print("No tree pays here: decoding will be plain.", style="bold")


def _accuracies(report: Report, plus_minus: str) -> Table:
    """Return a table of top-i accuracies, a row for each head."""
    table = Table(
        title="Accuracy: the token is in the head's top i (95 % interval)", title_justify="left"
    )
    table.add_column("head")
    for rank in range(RANKS):
        table.add_column(f"top {rank + 1}", justify="right")
    table.add_column("positions", justify="right")
    positions = report.recording.known.sum(0).tolist()
    rows = zip(report.recording.accuracies(), report.intervals(RANKS), positions, strict=True)
    for head, (accuracies, intervals, count) in enumerate(rows, start=1):
        cells = [
            f"{accuracy:.1%} {plus_minus}{(high - low) / 2:.1%}"
            for accuracy, (low, high) in zip(accuracies, intervals, strict=False)
        ]
        table.add_row(str(head), *cells, str(count))
    return table


def _sizes(report: Report) -> Table:
    """Return a table of the best tree of each measured size; the chosen one is green."""
    table = Table(title="The best tree of each size, predicted", title_justify="left")
    for column in ("nodes", "depth", "tokens/step", "step ms", "overhead", "speedup"):
        table.add_column(column, justify="right")
    step_ms = report.latency.curve()
    sizes = {*step_ms, len(report.tree)}
    for candidate in report.candidates:
        if len(candidate.tree) in sizes:
            table.add_row(
                str(len(candidate.tree)),
                str(candidate.tree.max_depth),
                f"{candidate.acceleration_rate:.2f}",
                f"{candidate.overhead * step_ms[1]:.2f}",
                f"{candidate.overhead:.2f}",
                f"{candidate.speedup:.2f}",
                style="bold green" if candidate is report.chosen else "",
            )
    return table


def _heads(report: Report) -> Table:
    """Return a table of the best tree that uses the first k heads, for each k."""
    table = Table(title="Gain of each further head", title_justify="left")
    for column in ("heads", "nodes", "tokens/step", "speedup"):
        table.add_column(column, justify="right")
    for heads, candidate in enumerate(report.by_heads(), start=1):
        table.add_row(
            str(heads),
            str(len(candidate.tree)),
            f"{candidate.acceleration_rate:.2f}",
            f"{candidate.speedup:.2f}",
        )
    return table


def _chosen_tree(report: Report) -> Table:
    """Return a table that compares what was predicted for the chosen tree with what it gave."""
    table = Table(
        title=f"The chosen tree: {len(report.tree)} nodes, {report.tree.max_depth} heads",
        title_justify="left",
    )
    for column in ("", "predicted", "measured on other prompts"):
        table.add_column(column)
    predicted, measured = report.predicted_figures(), report.measured_figures()
    for name in ("acceleration_rate", "overhead", "speedup"):
        cells = (_with_interval(figures, name) for figures in (predicted, measured))
        table.add_row(name.replace("_", " "), *cells)
    return table


def _with_interval(figures: dict[str, Any], name: str) -> str:
    interval = figures.get(f"{name}_interval")
    return f"{figures[name]:.2f}" + (
        f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    )
