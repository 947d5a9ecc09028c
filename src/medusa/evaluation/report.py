"""What a measurement says: tables for people, one JSON object for programs, provenance with
both.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .. import files
from .measure import Comparison, Totals
from .methods import METHODS

COLUMNS = ("tokens", "steps", "tokens / step", "overhead", "plain tok/s", "Medusa tok/s")
"""What every table of figures starts with."""
WIDTH = 160
"""Columns of a table that no terminal limits."""
BASELINES = [name for name in METHODS if name != "medusa"]


def figures(comparisons: Sequence[Comparison], greedy: bool) -> dict[str, Any]:
    """`totals` over all comparisons and `categories`, each with the names of `demo --json`."""
    categories = dict.fromkeys(each.prompt.category for each in comparisons)
    return {
        "totals": Totals(list(comparisons)).summary(greedy),
        "categories": {
            name: Totals([each for each in comparisons if each.prompt.category == name]).summary(
                greedy
            )
            for name in categories
        },
    }


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of figures as text, under `COLUMNS`."""
    return (
        str(row["tokens"]),
        str(row["steps"]),
        f"{row['acceleration_rate']:.2f}",
        f"{row['overhead']:.2f}",
        f"{row['tokens_per_second']['plain']:.0f}",
        f"{row['tokens_per_second']['medusa']:.0f}",
    )


def table(title: str, result: dict[str, Any]) -> Table:
    """A row a category and one for the total."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("", no_wrap=True)
    for column in (*COLUMNS, *map(_versus, BASELINES), "identical", "correct"):
        shown.add_column(column, justify="right")
    for name, row in [*result["categories"].items(), ("total", result["totals"])]:
        identical = (
            "-" if row["identical"] is None else f"{row['identical_prompts']}/{row['prompts']}"
        )
        shown.add_row(
            name,
            *cells(row),
            *(f"{row[f'speedup_over_{name}']:.2f}" for name in BASELINES),
            identical,
            "-" if row["correct"] is None else f"{row['correct']:.0%}",
            end_section=name == list(result["categories"])[-1],
        )
    return shown


def _versus(method: str) -> str:
    return f"vs {method.replace('_', ' ')}"


def results_folder(name: str) -> Path:
    """Return the folder that `--output` names, made and found writable before anything is
    measured.
    """
    try:
        files.check_writable(Path(name) / "results.json")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(name)


def stem(folder: Path, made: dict[str, Any]) -> Path:
    """`folder/<date>-<device>`, without an ending; the folder is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{made['date']}-{slug(made['device'])}"


def write_json(folder: Path, report: dict[str, Any], kind: str) -> Path:
    """Write `<date>-<device>.<kind>.json`; returns its path."""
    file = stem(folder, report["provenance"]).with_suffix(f".{kind}.json")
    files.write_json(file, report, indent=1)
    return file


def slug(device: str) -> str:
    """A device's name as part of a file's."""
    words = "".join(letter if letter.isalnum() else "-" for letter in device.lower())
    return "-".join(filter(None, words.split("-")))


def write(folder: Path, report: dict[str, Any], tables: Sequence[Table], kind: str = "") -> Path:
    """Write `<date>-<device>[-<kind>].json` and the tables beside it as text; returns the JSON
    file's path.
    """
    made = report["provenance"]
    begin = stem(folder, made)
    begin = begin.with_name("-".join(filter(None, (begin.name, kind))))
    files.write_json(begin.with_suffix(".json"), report, indent=1)
    console = Console(width=WIDTH, record=True, file=io.StringIO())
    for each in tables:
        console.print(each)
    with files.replacing(begin.with_suffix(".txt")) as beside:
        beside.write_text(json.dumps(made) + "\n\n" + console.export_text(), encoding="utf-8")
    return begin.with_suffix(".json")
