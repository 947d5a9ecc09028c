"""A model's answers with and without Medusa, side by side, and the speed of both."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .. import files
from ..core.engine import PLAIN
from ..core.tree import CandidateTree
from ..demo import smollm2
from ..evaluation import METHODS, Bench, BenchSettings, run_bench
from ..evaluation.bench_report import ALL, Answered, figures, report
from ..evaluation.prompts import question_ids, task_questions
from ..evaluation.records import QuestionRecord
from ..evaluation.suites import Question
from ..hardware.provenance import provenance
from ..loading import MedusaModel
from ..text import stream_text
from . import streams
from .demo import DemoOptions
from .models import SMOLLM2, load
from .options import ModelOptions

COMPARED = ("plain", "medusa", "generate")
HEADINGS = (
    "vs plain",
    "vs generate",
    "first token ms, Medusa",
    "first token ms, generate",
    "tokens / step",
    "overhead",
    "plain tok/s",
    "Medusa tok/s",
    "same tokens",
    "right",
)
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
        name, questions, unseen = "SmolLM2-135M-Instruct", real_requests(), ""
    else:
        name, questions = "The embedded model", task_questions(options.per_category)
        unseen = " that were not in its training data"
    arguments = {"max_new_tokens": options.max_new_tokens, "do_sample": False}
    console.print(
        f"{name} ({model.base.num_parameters() / 1e6:.1f} million parameters) answers "
        f"{len(questions)} requests{unseen}: first one token per step, then with Medusa, which "
        f"verifies a tree of {len(model.tree)} nodes per step. Accepted candidates are green.\n"
    )
    for question in questions:
        show(console, model, tokenizer, question, arguments)
    settings = BenchSettings(options.max_new_tokens, rounds=REPEATS)
    bench = Bench(model, tokenizer, {name: METHODS[name] for name in COMPARED}, settings)
    records = run_bench(bench, questions)
    if options.json is not None:
        files.write_json(options.json, result(questions, records, tokenizer), indent=1)
    console.print(table(records))
    console.print(_setting(), style="dim")
    if options.model != SMOLLM2 and smollm2.has_heads():
        console.print(f"A real model: medusa demo {SMOLLM2}", style="dim")


def real_requests() -> list[Question]:
    """Return the requests to SmolLM2, whose answers nothing checks."""
    return [
        Question(category, category, [{"role": "user", "content": text}])
        for category, text in smollm2.REQUESTS.items()
    ]


def show(
    console: Console,
    model: MedusaModel,
    tokenizer: PreTrainedTokenizerBase,
    question: Question,
    arguments: dict[str, Any],
) -> None:
    """Stream the answer of plain decoding, then beside it that of Medusa."""
    console.print(
        Panel(
            Text(text_of(question)),
            title=question.category,
            title_align="left",
            border_style="cyan",
        )
    )
    ids = torch.tensor([question_ids(tokenizer, question)])
    panes = [Pane("plain decoding"), Pane("Medusa")]
    with _live(console, panes):
        for pane, tree in zip(panes, (PLAIN, model.tree), strict=True):
            pane.follow(model, tokenizer, ids, tree, arguments)
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
        for piece, accepted in stream_text(session.events(), tokenizer):
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


def text_of(question: Question) -> str:
    """Return the text of a request."""
    return str(question.messages[-1]["content"])


def table(records: Sequence[QuestionRecord]) -> Table:
    """Return a table of figures, with a row for each answer and one for all of them."""
    shown = Table(
        title="Greedy decoding",
        title_justify="left",
        caption="vs: speedup, prefill included (median); overhead: time of a step in plain steps",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),  # narrow, so that all columns fit on a terminal
    )
    shown.add_column("", no_wrap=True)
    for column in HEADINGS:
        # rich would cut a long word before it wraps a short one
        shown.add_column(column, justify="right", min_width=max(map(len, column.split())))
    answered = Answered.of(records)
    rows = [(each.category, [each]) for each in answered]
    for name, part in [*rows, ("all", answered)]:
        last = name != "all" and part[0] is answered[-1]
        shown.add_row(name, *cells(part), end_section=last)
    return shown


def cells(answered: Sequence[Answered]) -> tuple[str, ...]:
    """Return figures as texts, in the order of `HEADINGS`."""
    own, plain, generate = (figures(answered, name) for name in ("medusa", "plain", "generate"))
    same = all(
        each.identical("medusa", other) for each in answered for other in ("plain", "generate")
    )
    return (
        *(f"{own['speedup_over'][name]['median']:.2f}" for name in ("plain", "generate")),
        f"{own['first_token_ms']:.1f}",
        f"{generate['first_token_ms']:.1f}",
        "-" if own["tokens_per_step"] is None else f"{own['tokens_per_step']:.2f}",
        "-" if own["overhead"] is None else f"{own['overhead']:.2f}",
        f"{plain['tokens_per_second']:.0f}",
        f"{own['tokens_per_second']:.0f}",
        "yes" if same else "no",
        _verdict(own["right"]),
    )


def _verdict(right: float | None) -> str:
    """Return the share of right answers as a word or a percentage; "-" if nothing was checked."""
    if right is None:
        return "-"
    return {1.0: "yes", 0.0: "no"}.get(right, f"{right:.0%}")


def result(
    questions: Sequence[Question],
    records: Sequence[QuestionRecord],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Return the figures as `--json` writes them."""
    answers = []
    for question, each in zip(questions, Answered.of(records), strict=True):
        ids = each.runs["medusa"][0].ids
        answers.append(
            {
                "category": each.category,
                "prompt": text_of(question),
                "text": tokenizer.decode(ids, skip_special_tokens=True),
                "figures": {name: figures([each], name) for name in each.runs},
            }
        )
    return {"answers": answers, "figures": report(records)[ALL], "provenance": provenance()}


def _setting() -> str:
    """Return the device, the threads and the versions that the figures were measured with."""
    metadata = provenance()
    versions = f"torch {metadata['torch']}, transformers {metadata['transformers']}"
    return f"{metadata['device']}, {metadata['threads']} threads, {versions}"
