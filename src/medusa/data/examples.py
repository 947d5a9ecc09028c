"""Examples to batches: cut, counted, and, where asked for, several in a row that do not see each
other.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .chats import IGNORED, Encoder, Example
from .fields import read_chat, read_tools
from .records import Record, read_records


class BadRecordError(ValueError):
    """A record that teaches nothing because something is wrong with it; names its place."""


@dataclass
class Read:
    """What was read of a source.

    Attributes:
        examples: those that teach something.
        cut: how many were longer than allowed and lost their end.
        empty: how many had nothing to learn, or nothing left of it.
        bad: what is wrong with records that were skipped, place by place.
    """

    examples: list[Example] = field(default_factory=list)
    cut: int = 0
    empty: int = 0
    bad: list[str] = field(default_factory=list)


def read_examples(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    vocab_size: int,
    skip_bad: bool = False,
    limit: int | None = None,
    template: str | None = None,
    split: str = "train",
    stops: Collection[int] = (),
    advance: Callable[[int], None] | None = None,
) -> Read:
    """Return the examples of a file, folder or dataset.

    Args:
        max_length: tokens an example keeps.
        vocab_size: V of the model; a tokenizer that knows more tokens does not belong to it.
        skip_bad: count and skip malformed records instead of stopping at the first.
        limit: read at most so many records.
        template: a chat template in place of the tokenizer's.
        split: of a dataset on the hub.
        stops: ids that end an answer, besides the tokenizer's end of sequence and what the template
            shows.
        advance: told of every record.

    Raises:
        ValueError: the source is empty, a record is malformed (unless skipped), no example is left,
            or a token is outside the vocabulary.
    """
    encoder, read = Encoder(tokenizer, template, max_length=max_length, stops=stops), Read()
    for number, record in enumerate(read_records(source, split)):
        if limit is not None and number >= limit:
            break
        if advance is not None:
            advance(1)
        try:
            example = encoded(encoder, record)
        except BadRecordError as error:
            if not skip_bad:
                raise ValueError(f"{error} (--skip-bad passes over such records)") from None
            read.bad.append(str(error))
            continue
        largest = max(example.ids, default=0)
        if largest >= vocab_size:
            raise ValueError(
                f"{record.place}: token {largest} is outside the model's vocabulary of "
                f"{vocab_size}: "
                "tokenizer and model do not belong together"
            )
        kept = example.cut(max_length)
        read.cut += len(kept.ids) < len(example.ids)
        if kept.learnt:
            read.examples.append(kept)
        else:
            read.empty += 1
    if not read.examples:
        raise ValueError(
            f"{source} holds nothing to learn from: {read.empty} records with no answer or none "
            f"within {max_length} "
            f"tokens, {len(read.bad)} malformed ones"
            + (f", such as {read.bad[0]}" if read.bad else "")
        )
    return read


def encoded(encoder: Encoder, record: Record) -> Example:
    """Return the example of a record.

    Raises:
        BadRecordError: it is malformed, or the chat template or the tokenizer does not take it;
            names its place.
    """
    try:
        return encoder(read_chat(record), read_tools(record))
    except MemoryError:
        raise
    except Exception as error:  # templates and tokenizers raise what they like
        message = " ".join(str(error).split()) or type(error).__name__
        raise BadRecordError(
            message if message.startswith(record.place) else f"{record.place}: {message}"
        ) from None


def packed(examples: Sequence[Example], max_length: int) -> list[list[Example]]:
    """Examples in rows of at most `max_length` tokens, the longest first into the fullest row that
    has room.
    """
    rows: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # that rows have left, and which they are; the fullest first
    for example in sorted(examples, key=lambda each: -len(each.ids)):
        fits = bisect.bisect_left(room, (len(example.ids), 0))
        if fits < len(room):
            left, place = room.pop(fits)
            rows[place].append(example)
        else:
            left, place = max_length, len(rows)
            rows.append([example])
        bisect.insort(room, (left - len(example.ids), place))
    return rows


def collator(pad: int) -> Callable[[Sequence[Sequence[Example]]], dict[str, Tensor]]:
    """Rows of examples to `input_ids`, `labels`, `position_ids` and `segments`, each [B, S], padded
    on the right.

    Segments number the examples of a row from 1; 0 is padding. A label is where its token stands,
    as in transformers, but for each example's first, which nothing predicts.
    """

    def collate(rows: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
        width = max(sum(len(example.ids) for example in row) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), width), pad),
            "labels": torch.full((len(rows), width), IGNORED),
            # padding counts on: what starts again is packed, and transformers would make a mask for
            # it
            "position_ids": torch.arange(width).repeat(len(rows), 1),
            "segments": torch.zeros((len(rows), width), dtype=torch.long),
        }
        for line, row in enumerate(rows):
            begin = 0
            for number, example in enumerate(row, start=1):
                place = slice(begin, begin + len(example.ids))
                batch["input_ids"][line, place] = torch.tensor(example.ids)
                batch["labels"][line, place] = torch.tensor([IGNORED, *example.labels[1:]])
                batch["position_ids"][line, place] = torch.arange(len(example.ids))
                batch["segments"][line, place] = number
                begin = place.stop
        return batch

    return collate


def numbered_rows(
    examples: Sequence[Example], max_length: int | None = None
) -> list[tuple[int, list[Example]]]:
    """Examples as numbered rows of a batch; several in one where they are to be packed to
    `max_length` tokens.
    """
    lines = packed(examples, max_length) if max_length else [[example] for example in examples]
    return list(enumerate(lines))


def collate_rows(pad: int) -> Callable[[Sequence[tuple[int, list[Example]]]], dict[str, Tensor]]:
    """As `collator`, for numbered rows, whose numbers are `rows`."""
    collate = collator(pad)

    def numbered(given: Sequence[tuple[int, list[Example]]]) -> dict[str, Tensor]:
        return {
            **collate([row for _, row in given]),
            "rows": torch.tensor([number for number, _ in given]),
        }

    return numbered


def batches(examples: Sequence[Example], tokens: int) -> Iterable[list[list[Example]]]:
    """Examples as rows of their own, similar lengths together, at most `tokens` with padding."""
    batch: list[list[Example]] = []
    for example in sorted(examples, key=lambda each: len(each.ids)):
        if batch and (len(batch) + 1) * len(example.ids) > tokens:
            yield batch
            batch = []
        batch.append([example])
    if batch:
        yield batch
