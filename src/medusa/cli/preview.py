"""The first example of training data, printed with what is learnt in colour."""

from __future__ import annotations

from collections.abc import Collection

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..data.chats import IGNORED, Encoder, Example
from ..data.examples import encode_record
from ..data.records import read_records
from ..training.source import Source


def show_preview(
    console: Console,
    tokenizer: PreTrainedTokenizerBase,
    source: Source,
    max_length: int | None = None,
    stops: Collection[int] = (),
) -> None:
    """Print the first example: tokens to learn in green, tokens that are only read in grey.

    Args:
        max_length: maximum number of tokens in an example; None keeps all.
        stops: token ids that end an answer, besides the tokenizer's end of sequence and those that
            the chat template shows.

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
    """Return an example's text, decoded in runs of tokens that are all learnt or all ignored."""
    text = Text()
    begin = 0
    for place in range(1, len(example.ids) + 1):
        learnt = example.labels[begin] != IGNORED
        if place == len(example.ids) or (example.labels[place] != IGNORED) != learnt:
            piece = tokenizer.decode(example.ids[begin:place], skip_special_tokens=False)
            text.append(piece, style="green" if learnt else "bright_black")
            begin = place
    return text
