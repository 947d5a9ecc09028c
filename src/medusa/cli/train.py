"""`medusa train`: train heads, and with Medusa-2 the backbone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..data.chats import IGNORED, Encoder, Example
from ..data.examples import encode_record
from ..data.records import read_records
from ..training.arguments import processes
from ..training.recipe import Recipe
from ..training.run import train
from ..training.source import Source
from .models import folder_or_id, hide_piped_bars


def run(
    source: Source,
    *,
    options: dict[str, Any],
    output: Path | None,
    hidden_states: Path | None,
    merge: bool,
    report_to: str,
    preview: bool,
) -> None:
    """Train by the recipe that the options make, or show an example of the data.

    Raises:
        ValueError: no place to write is given, or see `medusa.training.train`.
    """
    recipe = Recipe(**options)
    recipe.check_effect(options)
    source = replace(source, model=folder_or_id(source.model))
    console = Console(stderr=True)
    hide_piped_bars()
    if preview:
        show_preview(Console(), source.tokenizer(), source, recipe.max_length, source.stops())
        return
    if output is None:
        raise ValueError("where should the heads go? name a folder with --output")

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    try:
        train(
            recipe,
            source,
            output,
            merge=merge,
            report_to=report_to,
            hidden_states=hidden_states,
            say=say,
        )
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on from the last checkpoint, if there is one")
        raise
    processes().destroy_process_group()


def show_preview(
    console: Console,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    max_length: int | None = None,
    stops: Collection[int] = (),
) -> None:
    """Print the first example of the data: what is learnt in green, what is only read in grey.

    Args:
        max_length: tokens an example keeps; None for all.
        stops: ids that end an answer, besides the tokenizer's end of sequence and what the template
            shows.

    Raises:
        ValueError: the source is empty, or its first record is malformed.
    """
    record = next(read_records(source.data, source.split))
    encoder = Encoder(tokenizer, source.template, max_length=max_length, stops=stops)
    example = encode_record(encoder, record)
    example = example if max_length is None else example.cut(max_length)
    console.print(
        f"{record.place}: {len(example.ids)} tokens, {example.learnt} learnt (green)\n",
        style="bold",
    )
    console.print(_coloured(tokenizer, example), soft_wrap=True)


def _coloured(tokenizer: PreTrainedTokenizerBase, example: Example) -> Text:
    text = Text()
    begin = 0
    for place in range(1, len(example.ids) + 1):
        learnt = example.labels[begin] != IGNORED
        if place == len(example.ids) or (example.labels[place] != IGNORED) != learnt:
            piece = tokenizer.decode(example.ids[begin:place], skip_special_tokens=False)
            text.append(piece, style="green" if learnt else "bright_black")
            begin = place
    return text
