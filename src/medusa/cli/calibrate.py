"""`medusa calibrate`: the tree that decodes fastest on this machine, found, tried, told about and
stored.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from .. import demo, files
from ..calibration.drawing import check_library, draw_tree, save
from ..calibration.figures import draw_accuracies, draw_trees, replayed, trees
from ..calibration.report import Prompts, Report, Settings, calibrate
from ..calibration.search import likelihoods
from ..data.prompts import encode, read_prompts
from ..data.turns import Messages
from ..formats import names
from ..formats import native as storage
from ..loading import MedusaModel
from .answer import note
from .models import DEMO, folder_or_id, load
from .streams import console

TRIED = 5
"""One prompt of so many is kept to try the chosen tree on."""


@dataclass(frozen=True)
class Outputs:
    """The files and folders of the results.

    Attributes:
        folder: of heads and tree.
        json_file: file of the whole report, if it is wanted.
        figures: folder of pictures, if they are wanted.
        resume: folder of finished batches, if they are kept.
    """

    folder: Path
    json_file: Path | None
    figures: Path | None
    resume: Path | None

    def check(self) -> None:
        """Check that all results can be written: before the work, which a later error would throw
        away.

        Raises:
            ImportError: figures are wanted, and matplotlib is missing or does not work.
            OSError: a file or folder cannot be written; names it.
        """
        if self.figures is not None:
            check_library()
        written = [self.folder / names.TREE, self.json_file]
        files_in = [
            None if folder is None else folder / "tree.png"
            for folder in (self.figures, self.resume)
        ]
        for file in (*written, *files_in):
            if file is not None:
                files.check_writable(file)

    def write(self, model: MedusaModel, report: Report) -> None:
        """Store the tree first, then the report and the figures; one that fails does not keep the
        others from coming.

        Raises:
            ValueError: the report or the figures could not be written; says what could.
        """
        _store(model, report, self.folder)
        note(f"tree written to {self.folder / names.TREE}")
        failures = []
        for name, place, write in (
            ("report", self.json_file, write_report),
            ("figures", self.figures, draw),
        ):
            if place is not None:
                try:
                    write(report, place)
                    note(f"{name} written to {place}")
                except Exception as error:  # a library that draws raises what it likes
                    failures.append(
                        f"the {name} could not be written to {place}: "
                        f"{error or type(error).__name__}"
                    )
        if failures:
            raise ValueError(f"the tree is stored in {self.folder}, but {'; '.join(failures)}")


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
    """Calibrate the model that `name` stands for, store the tree beside the heads, and print the
    report.

    Raises:
        ValueError: the model has no heads, there is no place to store the tree, or no prompts.
        ImportError, OSError: see `Outputs.check`.
    """
    outputs = Outputs(_folder(name, output, loading.get("revision")), json_file, figures, resume)
    chats = _chats(name, data, prompts)
    outputs.check()
    model, tokenizer = load(name, all_heads=True, **loading)
    recorded, others = _prompts(tokenizer, chats)
    arguments = {**arguments, "tokenizer": tokenizer}  # the model's own stop strings need it
    torch.manual_seed(0)
    report = calibrate(
        model,
        recorded,
        others,
        arguments,
        settings,
        acceptance=acceptance,
        work=resume,
        progress=_progress,
    )
    try:
        outputs.write(model, report)
    finally:
        show(console(), report)


def write_report(report: Report, file: Path) -> None:
    """Write the whole report as JSON."""
    files.write_json(file, report.to_json(), indent=1)


def draw(report: Report, folder: Path) -> None:
    """Draw `accuracy.png`, `trees.png` (figure 4, replayed) and `tree.png` (figure 6)."""
    points = replayed(
        report.recording, report.latency, trees(report.recording, report.settings.max_nodes)
    )
    title = (
        f"{report.made['device']}, {report.made['dtype']}, batch size {report.made['batch_size']}"
    )
    save(draw_accuracies(report), folder / "accuracy.png")
    save(draw_trees(points, title), folder / "trees.png")
    save(draw_tree(report.tree, likelihoods(report.recording, report.tree)), folder / "tree.png")


def _folder(name: str, output: Path | None, revision: str | None) -> Path:
    """Return where the tree goes: `output`, else beside the heads where they lie in a folder of the
    user's.

    Raises:
        ValueError: there are no heads, no such place, or `output` holds other heads.
    """
    named = folder_or_id(name)
    heads = names.find_heads(named, revision=revision)
    if heads is None:
        raise ValueError(f"{name} has no Medusa heads: there is nothing to calibrate")
    if output is None and not Path(named).expanduser().is_dir():
        raise ValueError(
            f"{name} comes from the hub: say with --output FOLDER where heads and tree should go"
        )
    if output is None:
        return heads
    if names.is_native(output) and not filecmp.cmp(
        heads / names.WEIGHTS, output / names.WEIGHTS, shallow=False
    ):
        raise ValueError(
            f"{output} holds other heads than {name}, which its tree would not fit: name another "
            "--output"
        )
    return output


def _store(model: MedusaModel, report: Report, folder: Path) -> None:
    """Write the tree file alone beside heads that are there, else heads and tree."""
    if names.is_native(folder):
        storage.write_tree(folder, report.tree, report.calibration)
    else:
        model.tree, model.calibration = report.tree, report.calibration
        model.save_pretrained(folder)


def _chats(name: str, data: str | None, count: int) -> list[Messages]:
    """Return the prompts to use, of which every `TRIED`th is to be kept.

    Raises:
        ValueError: no source is named, or it holds fewer than two prompts.
    """
    if data is None and name != DEMO:
        raise ValueError(
            "which prompts will the model serve? name some with --data FILE (or a dataset, "
            "owner/name)"
        )
    if data is None:
        return [
            [{"role": "user", "content": task.prompt}] for task in demo.calibration_tasks(count)
        ]
    chats = read_prompts(data)[:count]
    if len(chats) < 2:
        raise ValueError(
            f"{data} holds one prompt: calibration needs some to record and others to try the tree "
            "on"
        )
    return chats


def _prompts(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Messages]
) -> tuple[Prompts, Prompts]:
    """Return token ids of prompts to record, and of others to try the tree on."""
    ids = [encode(tokenizer, chat) for chat in chats]
    every = min(TRIED, len(ids))
    return [each for place, each in enumerate(ids) if place % every], ids[::every]


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda parts: bar.advance(task, parts)


def show(screen: Console, report: Report) -> None:
    """Print the report in tables."""
    for table in (
        _accuracies(report, "+-" if screen.options.ascii_only else "±"),
        _sizes(report),
        _heads(report),
    ):
        screen.print(table)
    screen.print(_outcome(report))
    if not report.tree.max_depth:
        screen.print("No tree pays here: decoding will be plain.", style="bold")


def _accuracies(report: Report, sign: str, ranks: int = 5) -> Table:
    table = Table(
        title="Accuracy: the token is in the head's top i (95 % interval)", title_justify="left"
    )
    table.add_column("head")
    for rank in range(ranks):
        table.add_column(f"top {rank + 1}", justify="right")
    table.add_column("positions", justify="right")
    known = report.recording.known.sum(0).tolist()
    for head, (shares, row) in enumerate(
        zip(report.recording.accuracies(), report.intervals(ranks), strict=True), start=1
    ):
        cells = [
            f"{share:.1%} {sign}{(high - low) / 2:.1%}"
            for share, (low, high) in zip(shares, row, strict=False)
        ]
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
        table.add_row(
            str(heads), str(len(each.tree)), f"{each.acceleration_rate:.2f}", f"{each.speedup:.2f}"
        )
    return table


def _outcome(report: Report) -> Table:
    predicted, found = report.predicted(), report.found()
    table = Table(
        title=f"The chosen tree: {len(report.tree)} nodes, {report.tree.max_depth} heads",
        title_justify="left",
    )
    for column in ("", "predicted", "measured on other prompts"):
        table.add_column(column)
    for name in ("acceleration_rate", "overhead", "speedup"):
        table.add_row(
            name.replace("_", " "), *(_with_interval(each, name) for each in (predicted, found))
        )
    return table


def _with_interval(figures: dict[str, Any], name: str) -> str:
    interval = figures.get(f"{name}_interval")
    return f"{figures[name]:.2f}" + (
        f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    )
