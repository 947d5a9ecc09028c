"""A model's answers with and without Medusa, side by side, and the speed of both."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import track
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .. import files
from ..core.engine import PLAIN
from ..core.tree import CandidateTree
from ..demo import smollm2
from ..evaluation.measure import Comparison, Prompt, Totals, compare
from ..evaluation.prompts import held_out
from ..evaluation.report import new_speed_table, speed_cells
from ..hardware.provenance import provenance
from ..loading import MedusaModel
from ..text import encode_text, stream_text
from . import streams
from .demo import DemoOptions
from .models import SMOLLM2, load
from .options import ModelOptions

METHODS = ("plain", "medusa", "generate")
BASELINES = ("plain", "generate")
REPEATS = 3


def run(options: DemoOptions) -> None:
    """Show the answers, then measure and print the speed.

    Raises:
        OSError: the file for the figures cannot be written; raised before any work.
    """
    if options.json is not None:
        files.check_writable(options.json)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    console = streams.console()
    logging.disable_progress_bar()
    # in 16 bits kernels round differently, and two tokens that are nearly tied may change places
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the tree of .* was calibrated on")
        model, tokenizer = load(ModelOptions(model=options.model, dtype="float32"))
    if options.model == SMOLLM2:
        name, prompts, unseen = "SmolLM2-135M-Instruct", real_requests(tokenizer), ""
    else:
        name, prompts = "The embedded model", held_out(tokenizer, options.per_category)
        unseen = " that were not in its training data"
    arguments = {"max_new_tokens": options.max_new_tokens, "do_sample": False}
    console.print(
        f"{name} ({model.base.num_parameters() / 1e6:.1f} million parameters) answers "
        f"{len(prompts)} requests{unseen}: first one token per step, then with Medusa, which "
        f"verifies a tree of {len(model.tree)} nodes per step. Accepted candidates are green.\n"
    )
    for _ in compare(model, prompts[:1], arguments, methods=METHODS, repeats=1):
        pass
    for prompt in prompts:
        show(console, model, tokenizer, prompt, arguments)
    comparisons = list(
        track(
            compare(model, prompts, arguments, methods=METHODS, repeats=REPEATS),
            "Measuring, methods interleaved",
            total=len(prompts),
            console=Console(stderr=True),
        )
    )
    if options.json is not None:
        files.write_json(options.json, result(comparisons, tokenizer), indent=1)
    console.print(table(comparisons))
    console.print(_setting(), style="dim")
    if options.model != SMOLLM2 and smollm2.has_heads():
        console.print(f"A real model: medusa demo {SMOLLM2}", style="dim")


def real_requests(tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """Return the requests to SmolLM2, whose answers nothing checks."""
    return [
        Prompt(category, text, encode_text(tokenizer, text))
        for category, text in smollm2.REQUESTS.items()
    ]


def show(
    console: Console,
    model: MedusaModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    arguments: dict[str, Any],
) -> None:
    """Stream the answer of plain decoding, then beside it that of Medusa."""
    console.print(
        Panel(Text(prompt.text), title=prompt.category, title_align="left", border_style="cyan")
    )
    panes = [Pane("plain decoding"), Pane("Medusa")]
    with _live(console, panes):
        for pane, tree in zip(panes, (PLAIN, model.tree), strict=True):
            pane.follow(model, tokenizer, prompt.ids, tree, arguments)
    console.print()


class Pane:
    """An answer and its figures, which a terminal draws again as they change."""

    def __init__(self, title: str):
        self.title = title
        self.text = Text()
        self.status = "waiting"

    def follow(
        self,
        model: MedusaModel,
        tokenizer: PreTrainedTokenizerBase,
        ids: torch.Tensor,
        tree: CandidateTree,
        arguments: dict[str, Any],
    ) -> None:
        """Decode an answer and show its text; the time that showing it takes is not counted."""
        session = model.steps(ids, tree=tree, **arguments)
        for piece, accepted in stream_text(session.tokens(), tokenizer):
            self.text.append(piece, style="bold green" if accepted else "")
            stats = session.stats
            rate = stats.tokens / stats.decoding_seconds if stats.decoding_seconds else 0.0
            self.status = (
                f"{stats.steps} steps, {stats.acceleration_rate:.2f} tokens/step, {rate:.0f} "
                "tokens/s"
            )

    def __rich__(self) -> Panel:
        return Panel(
            Group(self.text),
            title=self.title,
            subtitle=self.status,
            title_align="left",
            subtitle_align="left",
        )


@contextmanager
def _live(console: Console, panes: list[Pane]) -> Iterator[None]:
    """Show panes side by side, redrawn ten times a second.

    Without a terminal, print the figures of both and the last answer when they are finished.
    """
    if console.is_terminal:
        grid = Table.grid(expand=True, padding=(0, 1))
        for _ in panes:
            grid.add_column(ratio=1)
        grid.add_row(*panes)
        with Live(grid, console=console, refresh_per_second=10):
            yield
    else:
        yield
        for pane in panes:
            console.print(f"{pane.title}: {pane.status}")
        console.print(panes[-1].text.plain, markup=False, highlight=False, soft_wrap=True)


def table(comparisons: list[Comparison]) -> Table:
    """Return a table of figures, with a row for each answer and one for all of them."""
    shown = new_speed_table("Greedy decoding", BASELINES)
    rows = [(comparison.prompt.category, [comparison]) for comparison in comparisons]
    for name, part in [*rows, ("all", comparisons)]:
        figures = Totals(part).summary(greedy=True)
        shown.add_row(
            name,
            *speed_cells(figures, BASELINES),
            "yes" if figures["identical"] else "no",
            _verdict(figures["correct"]),
            end_section=name != "all" and part[0] is comparisons[-1],
        )
    return shown


def _verdict(correct: float | None) -> str:
    """Return the share of right answers as a word or a percentage; "-" if nothing was checked."""
    if correct is None:
        return "-"
    return {1.0: "yes", 0.0: "no"}.get(correct, f"{correct:.0%}")


def result(comparisons: list[Comparison], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the figures as `--json` writes them."""
    answers = []
    for comparison in comparisons:
        summary = Totals([comparison]).summary(greedy=True)
        ids = comparison.runs["medusa"][0].ids
        answers.append(
            {
                "category": comparison.prompt.category,
                "prompt": comparison.prompt.text,
                "text": tokenizer.decode(ids, skip_special_tokens=True),
                **summary,
                "correct": comparison.correct,
            }
        )
    return {
        "answers": answers,
        "totals": Totals(comparisons).summary(greedy=True),
        "provenance": provenance(),
    }


def _setting() -> str:
    """Return the device, the threads and the versions that the figures were measured with."""
    metadata = provenance()
    versions = f"torch {metadata['torch']}, transformers {metadata['transformers']}"
    return f"{metadata['device']}, {metadata['threads']} threads, {versions}"
