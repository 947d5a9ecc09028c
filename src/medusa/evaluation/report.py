"""Reports of a comparison: figures for programs and a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from .measure import Comparison, Totals
from .methods import METHODS

BASELINES = tuple(name for name in METHODS if name != "medusa")
WITHOUT_PREFILL = "no prefill"
"""Heading of a speedup over the decoding steps alone."""
CAPTION = (
    f"vs: speedup over the whole time; {WITHOUT_PREFILL}, overhead and tok/s: decoding steps "
    "alone; first token: median"
)


def figures(comparisons: Sequence[Comparison], greedy: bool) -> dict[str, Any]:
    """Return `Totals.summary` of all comparisons ("totals") and of each category ("categories")."""
    categories = dict.fromkeys(comparison.prompt.category for comparison in comparisons)
    return {
        "totals": Totals(list(comparisons)).summary(greedy),
        "categories": {
            name: Totals(
                [comparison for comparison in comparisons if comparison.prompt.category == name]
            ).summary(greedy)
            for name in categories
        },
    }


def speed_columns(baselines: Sequence[str] = BASELINES) -> list[str]:
    """Return the headings of a speed table, which `speed_cells` fills.

    They begin with the speedup over each baseline: over the whole time, then without the prefill.
    """
    speedups = [
        heading
        for name in baselines
        for heading in (f"vs {name.replace('_', ' ')}", WITHOUT_PREFILL)
    ]
    return [
        *speedups,
        "first token ms, Medusa",
        "first token ms, generate",
        "tokens / step",
        "overhead",
        "plain tok/s",
        "Medusa tok/s",
    ]


def speed_cells(summary: dict[str, Any], baselines: Sequence[str] = BASELINES) -> list[str]:
    """Return the figures of a `Totals.summary` as text, under the headings of `speed_columns`."""
    speedups = [
        f"{summary[f'speedup_over_{name}{suffix}']:.2f}"
        for name in baselines
        for suffix in ("_with_prefill", "")
    ]
    return [
        *speedups,
        f"{summary['first_token_ms']['medusa']:.1f}",
        f"{summary['first_token_ms']['generate']:.1f}",
        f"{summary['acceleration_rate']:.2f}",
        f"{summary['overhead']:.2f}",
        f"{summary['tokens_per_second']['plain']:.0f}",
        f"{summary['tokens_per_second']['medusa']:.0f}",
    ]


def new_speed_table(title: str, baselines: Sequence[str] = BASELINES) -> Table:
    """Return an empty table: a row's name, the speed columns, identical and correct answers."""
    table = Table(
        title=title,
        title_justify="left",
        caption=CAPTION,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),  # narrow, so that all columns fit on a terminal
    )
    table.add_column("", no_wrap=True)
    for column in (*speed_columns(baselines), "same tokens", "right"):
        # rich would cut a long word before it wraps a short one
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    return table


def speed_table(title: str, result: dict[str, Any]) -> Table:
    """Return a table with a row for each category of `figures` and one for the total."""
    table = new_speed_table(title)
    for name, summary in [*result["categories"].items(), ("total", result["totals"])]:
        table.add_row(
            name,
            *speed_cells(summary),
            _identical(summary),
            "-" if summary["correct"] is None else f"{summary['correct']:.0%}",
            end_section=name == list(result["categories"])[-1],
        )
    return table


def _identical(summary: dict[str, Any]) -> str:
    if summary["identical"] is None:
        return "-"
    return f"{summary['identical_prompts']}/{summary['prompts']}"
