"""`medusa distill`: a model's own answers to prompts, to train its heads on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..training import distill as data
from ..training.answers_file import AnswersFile, answers_file
from ..training.conversations import Answerer, GenerationSettings
from .models import load

LOG_EVERY = 30.0
"""Seconds between two lines about progress in a log or pipe."""
SHOWN = 5
"""Refused conversations that are named on the console."""


def run(
    name: str,
    prompts: str,
    settings: GenerationSettings,
    output: Path,
    *,
    batch_size: int,
    limit: int | None,
    split: str,
    server: str | None,
    in_flight: int,
    timeout: float,
    **loading: Any,
) -> None:
    """Answer the prompts and append the answers to `output`; tells progress and results on stderr.

    Prompts and `output` are checked before the model is loaded or a server is asked.

    Raises:
        ValueError: there is no prompt, or some conversations were refused.
    """
    console = Console(stderr=True)
    seeds = list(data.read_seeds(prompts, limit, split))
    with answers_file(output, settings) as answers:
        engine: Answerer
        if server is not None:
            from ..training.server import ServerAnswerer

            engine = ServerAnswerer(server, settings, in_flight=in_flight, timeout=timeout)
        else:
            from ..training.answering import OwnEngine

            engine = OwnEngine(*load(name, **loading), settings, batch_size)
        try:
            with watching(console) as watch:
                progress = data.distill(engine, seeds, answers, watch)
        except KeyboardInterrupt:
            _say(console, f"stopped; {_kept(answers)}. The same command goes on")
            raise
    _report(console, answers, progress)


@contextmanager
def watching(console: Console) -> Iterator[Callable[[data.DistillProgress], None]]:
    """Yield a function that shows progress: as a bar on a terminal, elsewhere as a line every
    `LOG_EVERY` seconds.
    """
    started = time.monotonic()
    refused = 0

    def named(progress: data.DistillProgress) -> None:
        nonlocal refused
        for problem in progress.refused[refused:SHOWN]:
            _say(console, f"refused: {problem}")
        refused = len(progress.refused)

    if console.is_terminal:
        with Progress(TextColumn("{task.description}"), BarColumn(), console=console) as bar:
            task = bar.add_task("conversations")

            def show(progress: data.DistillProgress) -> None:
                named(progress)
                line = status(progress, time.monotonic() - started)
                bar.update(task, description=line, completed=progress.done, total=progress.total)

            yield show
    else:
        shown = started

        def log(progress: data.DistillProgress) -> None:
            nonlocal shown
            named(progress)
            now = time.monotonic()
            if now - shown >= LOG_EVERY or progress.done == progress.total:
                shown = now
                _say(console, status(progress, now - started))

        yield log


def status(progress: data.DistillProgress, seconds: float) -> str:
    """Return a line that says what is done after so many seconds, how fast, and how long the rest
    will take.
    """
    here = progress.done - progress.earlier
    parts = [f"{progress.done}/{progress.total} conversations"]
    if here and seconds > 0:
        left = timedelta(seconds=round(seconds / here * (progress.total - progress.done)))
        parts += [f"{progress.tokens / seconds:.0f} tokens/s", f"{left} left"]
    if progress.refused:
        parts.append(f"{len(progress.refused)} refused")
    return ", ".join(parts)


def _report(console: Console, answers: AnswersFile, progress: data.DistillProgress) -> None:
    _say(console, _kept(answers))
    if progress.cut:
        limit = f"{answers.settings.max_new_tokens} tokens or the model's positions"
        _say(
            console,
            f'{progress.cut} of them end in an answer that was cut off ({limit}), marked "cut"',
        )
    if progress.left_out:
        _say(
            console,
            f"{progress.left_out} left out, without an answer: {answers.path}.left-out says why",
        )
    if progress.refused:
        count = f"{len(progress.refused)} of {progress.total}"
        raise ValueError(f"{count} conversations were refused; the same command asks them again")


def _kept(answers: AnswersFile) -> str:
    return f"{len(answers.kept)} conversations in {answers.path}"


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
