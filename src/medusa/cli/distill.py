"""`medusa distill`: a model's own answers to seed prompts, to train its heads on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..training import distill as data
from .models import load


def run(
    name: str,
    prompts: str,
    settings: data.Settings,
    output: Path,
    *,
    batch_size: int,
    limit: int | None,
    split: str,
    server: str | None,
    in_flight: int,
    **loading: Any,
) -> None:
    """Answer the prompts and append to `output`; says what was left out.

    Raises:
        ValueError: some conversations were refused.
    """
    console = Console(stderr=True)
    seeds = list(data.read_seeds(prompts, limit, split))
    engine: data.Engine
    if server is not None:
        engine = data.Server(server, settings, in_flight=in_flight)
    else:
        engine = data.OwnEngine(*load(name, **loading), settings, batch_size)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]:.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("conversations", total=len(seeds), speed=0.0)

        def watch(progress: data.Progress) -> None:
            elapsed = bar.tasks[0].elapsed or 1e-9
            bar.update(task, completed=progress.finished + len(progress.refused), speed=progress.tokens / elapsed)

        progress = data.distill(engine, seeds, settings, output, watch)
    console.print(f"{progress.finished - progress.left_out} conversations in {output}", soft_wrap=True)
    if progress.left_out:
        console.print(
            f"{progress.left_out} left out: their first answer was longer than {settings.max_new_tokens} tokens"
        )
    for refused in progress.refused[:5]:
        console.print(f"refused: {refused}", soft_wrap=True)
    if progress.refused:
        raise ValueError(
            f"{len(progress.refused)} of {len(seeds)} conversations were refused; the same command tries them again"
        )
