"""`medusa calibrate`: the tree that decodes fastest on this machine, found, tried, told about and stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from .. import demo, names, storage
from ..calibration.drawing import draw_tree, save
from ..calibration.figures import draw_accuracies, draw_trees, replayed, trees
from ..calibration.prompts import encode, read_prompts
from ..calibration.report import Prompts, Report, Settings, calibrate
from ..calibration.search import likelihoods
from ..pretrained import MedusaModel
from .models import DEMO, folder_or_id, load

TRIED = 5
"""One prompt in so many is kept to try the chosen tree on."""


def run(
    name: str,
    *,
    data: str | None,
    prompts: int,
    arguments: dict[str, Any],
    acceptance: str,
    settings: Settings,
    output: Path | None,
    json_file: Path | None,
    figures: Path | None,
    resume: Path | None,
    **loading: Any,
) -> None:
    """Calibrate the model that `name` stands for, print the report, and store the tree beside the heads.

    Raises:
        ValueError: the model has no heads, there is no place to store the tree, or no prompts.
    """
    folder = _folder(name, output, loading.get("revision"))
    if data is None and name != DEMO:
        raise ValueError("which prompts will the model serve? name some with --data FILE (or a dataset, owner/name)")
    model, tokenizer = load(name, all_heads=True, **loading)
    recorded, others = _prompts(tokenizer, data, prompts)
    torch.manual_seed(0)
    report = calibrate(
        model, recorded, others, arguments, settings, acceptance=acceptance, work=resume, progress=_progress
    )
    show(Console(), report)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if figures is not None:
        draw(report, figures)
    _store(model, report, folder)
    Console(stderr=True).print(f"tree written to {folder / names.TREE}", soft_wrap=True)


def draw(report: Report, folder: Path) -> None:
    """`accuracy.png`, `trees.png` (figure 4, replayed) and `tree.png` (figure 6)."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = report.settings.max_nodes
    points = replayed(report.recording, report.latency, trees(report.recording, nodes))
    title = f"{report.made['device']}, {report.made['dtype']}, batch size {report.made['batch_size']}"
    save(draw_accuracies(report), folder / "accuracy.png")
    save(draw_trees(points, title), folder / "trees.png")
    save(draw_tree(report.tree, likelihoods(report.recording, report.tree)), folder / "tree.png")


def _folder(name: str, output: Path | None, revision: str | None) -> Path:
    """Where the tree goes: `output`, else beside the heads where they lie in a folder of the user's."""
    name = folder_or_id(name)
    heads = names.find_heads(name, revision=revision)
    if heads is None:
        raise ValueError(f"{name} has no Medusa heads: there is nothing to calibrate")
    if output is None and not Path(name).expanduser().is_dir():
        raise ValueError(f"{name} comes from the hub: say with --output FOLDER where heads and tree should go")
    return output or heads


def _store(model: MedusaModel, report: Report, folder: Path) -> None:
    """The tree file alone beside heads that are there, else heads and tree."""
    if names.is_native(folder):
        storage.write_tree(folder, report.tree, report.calibration)
    else:
        model.tree, model.calibration = report.tree, report.calibration
        model.save_pretrained(folder)


def _prompts(tokenizer: PreTrainedTokenizerBase, data: str | None, count: int) -> tuple[Prompts, Prompts]:
    """Token ids of prompts to record, and of others."""
    if data is None:
        chats = [[{"role": "user", "content": task.prompt}] for task in demo.calibration_tasks(count)]
    else:
        chats = read_prompts(data)[:count]
    if len(chats) < 2:
        raise ValueError(f"{data} holds one prompt: calibration needs some to record and others to try the tree on")
    ids = [encode(tokenizer, chat) for chat in chats]
    every = min(TRIED, len(ids))
    return [each for place, each in enumerate(ids) if place % every], ids[::every]


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda parts: bar.advance(task, parts)


def show(console: Console, report: Report) -> None:
    """The report in tables."""
    console.print(_accuracies(report))
    console.print(_sizes(report))
    console.print(_heads(report))
    console.print(_outcome(report))
    if not report.tree.max_depth:
        console.print("No tree pays here: decoding will be plain.", style="bold")


def _accuracies(report: Report, ranks: int = 5) -> Table:
    table = Table(title="Accuracy: the token is in the head's top i (95 % interval)", title_justify="left")
    table.add_column("head")
    for rank in range(ranks):
        table.add_column(f"top {rank + 1}", justify="right")
    table.add_column("positions", justify="right")
    known = report.recording.known.sum(0).tolist()
    for head, (shares, row) in enumerate(
        zip(report.recording.accuracies(), report.intervals(ranks), strict=True), start=1
    ):
        cells = [f"{share:.1%} ±{(high - low) / 2:.1%}" for share, (low, high) in zip(shares, row, strict=False)]
        table.add_row(str(head), *cells, str(known[head - 1]))
    return table


def _sizes(report: Report) -> Table:
    table = Table(title="The best tree of each size, predicted", title_justify="left")
    for column in ("nodes", "depth", "tokens/step", "step ms", "overhead", "speedup"):
        table.add_column(column, justify="right")
    curve = report.latency.curve()
    shown = {*curve, len(report.tree)}
    for each in report.candidates:
        if len(each.tree) in shown:
            table.add_row(
                str(len(each.tree)),
                str(each.tree.max_depth),
                f"{each.acceleration_rate:.2f}",
                f"{each.overhead * curve[1]:.2f}",
                f"{each.overhead:.2f}",
                f"{each.speedup:.2f}",
                style="bold green" if each is report.chosen else "",
            )
    return table


def _heads(report: Report) -> Table:
    table = Table(title="What each further head adds", title_justify="left")
    for column in ("heads", "nodes", "tokens/step", "speedup"):
        table.add_column(column, justify="right")
    for heads, each in enumerate(report.by_heads(), start=1):
        table.add_row(str(heads), str(len(each.tree)), f"{each.acceleration_rate:.2f}", f"{each.speedup:.2f}")
    return table


def _outcome(report: Report) -> Table:
    predicted, found = report.predicted(), report.found()
    table = Table(
        title=f"The chosen tree: {len(report.tree)} nodes, {report.tree.max_depth} heads", title_justify="left"
    )
    for column in ("", "predicted", "measured on other prompts"):
        table.add_column(column)
    for name in ("acceleration_rate", "overhead", "speedup"):
        table.add_row(name.replace("_", " "), *(_with_interval(each, name) for each in (predicted, found)))
    return table


def _with_interval(figures: dict[str, Any], name: str) -> str:
    interval = figures.get(f"{name}_interval")
    return f"{figures[name]:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
