"""Options, statistics and output files that all benchmark scripts share.

The clock and the interleaved rounds come from `medusa.hardware.timing`.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

from medusa import files
from medusa.evaluation.suites import Question, read_suite
from medusa.hardware import memory
from medusa.hardware.provenance import provenance
from medusa.hardware.timing import Timed

ROOT = Path(__file__).resolve().parents[1]
"""The repository."""
RESULTS = ROOT / "benchmarks" / "results"
"""Folder of the published results, and the default of `--output`."""
WIDTH = 120
"""Width of printed tables, in characters."""
WIDE = 210
"""Width of tables with many columns."""
THREADS = 2
"""Default number of threads: that of the machine with the published figures."""

Name = TypeVar("Name")
Result = TypeVar("Result")


def argument_parser(
    description: str | None, *, rounds: int | None = None, rounds_help: str = "measured rounds"
) -> argparse.ArgumentParser:
    """Return a parser with the options of every script: --threads, --output and maybe --rounds.

    Args:
        description: the script's docstring.
        rounds: default of `--rounds`; None leaves the option out.
        rounds_help: what a round is.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=int, default=rounds, help=f"{rounds_help} (default: {rounds})"
        )
    parser.add_argument(
        "--threads", type=int, default=THREADS, help=f"CPU threads (default: {THREADS})"
    )
    parser.add_argument(
        "--output",
        type=results_folder,
        default=str(RESULTS),
        help="folder for the results (default: benchmarks/results)",
    )
    return parser


def results_folder(name: str) -> Path:
    """Return the folder that `--output` names, checked to be writable before anything is measured.

    Raises:
        argparse.ArgumentTypeError: no file can be written there.
    """
    try:
        files.check_writable(Path(name) / "results.json")
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(name)


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of the command line, and set the number of threads that they name."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


def new_report(**figures: Any) -> dict[str, Any]:
    """Return a report that begins with its provenance."""
    return {"provenance": provenance(), **figures}


def medians(values: Mapping[Name, Sequence[float]]) -> dict[Name, float]:
    """Return the median of each named series."""
    return {name: statistics.median(series) for name, series in values.items()}


def seconds_of(runs: Mapping[Name, Sequence[Timed[Any]]]) -> dict[Name, list[float]]:
    """Return the seconds of each named series of timed calls."""
    return {name: [run.seconds for run in series] for name, series in runs.items()}


def in_new_process(call: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a new process, whose memory and caches nothing has touched yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def peak_bytes() -> float:
    """Return the peak memory of this process in bytes.

    Raises:
        OSError: this system, which is not Linux, does not tell it.
    """
    peak = memory.peak_bytes()
    if peak is None:
        raise OSError("the peak memory of a process is measured on Linux only")
    return peak


def publish(
    options: argparse.Namespace,
    report: dict[str, Any],
    kind: str,
    *tables: Table | str | dict[str, Any],
    width: int = WIDTH,
) -> Path:
    """Print the tables and write the report to `<date>-<device>.<kind>.json`; return its path."""
    console = Console(width=width)
    for table in tables:
        console.print(table)
    file = _dated(options.output, report).with_suffix(f".{kind}.json")
    files.write_json(file, report, indent=1)
    console.print(f"written to {file}")
    return file


def publish_for_device(
    options: argparse.Namespace,
    report: dict[str, Any],
    kind: str,
    *tables: Table | str | dict[str, Any],
    width: int = WIDTH,
) -> Path:
    """Print the tables and write the report to `<kind>-<device>.json`; return its path.

    Runs that take hours are published once for each device, and replace the file of the last run.
    """
    console = Console(width=width)
    for table in tables:
        console.print(table)
    file = device_file(options, report, kind)
    files.write_json(file, report, indent=1)
    console.print(f"written to {file}")
    return file


def device_file(options: argparse.Namespace, report: dict[str, Any], kind: str) -> Path:
    """Return the file `<kind>-<device>.json` of a report."""
    output: Path = options.output
    return output / f"{kind}-{slug(report['provenance']['device'])}.json"


def write_with_tables(
    folder: Path, report: dict[str, Any], tables: Sequence[Table], kind: str = ""
) -> Path:
    """Write `<date>-<device>[-<kind>].json`, and the tables as text beside it.

    Returns:
        The JSON file's path.
    """
    stem = _dated(folder, report)
    stem = stem.with_name("-".join(filter(None, (stem.name, kind))))
    files.write_json(stem.with_suffix(".json"), report, indent=1)
    console = Console(width=WIDE, record=True, file=io.StringIO())
    for table in tables:
        console.print(table)
    with files.replacing(stem.with_suffix(".txt")) as beside:
        text = json.dumps(report["provenance"]) + "\n\n" + console.export_text()
        beside.write_text(text, encoding="utf-8")
    return stem.with_suffix(".json")


def slug(device: str) -> str:
    """Return a device's name as part of a file name: "AMD EPYC" as "amd-epyc"."""
    words = "".join(letter if letter.isalnum() else "-" for letter in device.lower())
    return "-".join(filter(None, words.split("-")))


def _dated(folder: Path, report: dict[str, Any]) -> Path:
    """Return `folder/<date>-<device>`, without an ending, and make the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = report["provenance"]
    return folder / f"{measured['date']}-{slug(measured['device'])}"


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Add the options of scripts that answer MT-Bench's questions (see `first_turns`)."""
    parser.add_argument("--questions", required=True, help="MT-Bench's question.jsonl")
    parser.add_argument("--limit", type=int, help="questions of each category (default: all)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="(default: 256)")


def first_turns(file: str, limit: int | None) -> list[Question]:
    """Return the first turns of MT-Bench's questions, one of each category in turn.

    Args:
        file: MT-Bench's question.jsonl.
        limit: number of questions of each category; None is all.
    """
    found = read_suite("mt-bench", file, limit)
    return [dataclasses.replace(each, later=(), temperature=None) for each in found]
