"""Examples of a data source, and batches of examples, optionally packed several in a row."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .chats import IGNORED, Encoder, Example
from .fields import read_chat, read_tools
from .records import Record, read_records


class BadRecordError(ValueError):
    """A record that is malformed or cannot be encoded; the message names its place."""


@dataclass
class ReadExamples:
    """The examples of a data source, and counts of what was truncated or skipped.

    Attributes:
        examples: examples with at least one token to train on.
        cut: number of examples that were truncated to the maximum length.
        empty: number of records without a token to train on within the maximum length.
        bad: error message of each malformed record that was skipped.
    """

    examples: list[Example] = field(default_factory=list)
    cut: int = 0
    empty: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, example: Example, max_length: int) -> None:
        """Truncate an example and keep it if it has a token to train on."""
        kept = example.cut(max_length)
        self.cut += len(kept.ids) < len(example.ids)
        if kept.learnt:
            self.examples.append(kept)
        else:
            self.empty += 1


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
) -> ReadExamples:
    """Return the examples of a file, a folder or a hub dataset.

    Args:
        source: path of a file or a folder, or id of a dataset on the hub.
        tokenizer: tokenizer of the model.
        max_length: maximum number of tokens of an example; longer ones are truncated.
        vocab_size: size V of the model's vocabulary, to refuse the tokenizer of another model.
        skip_bad: count and skip malformed records instead of stopping at the first.
        limit: maximum number of records read.
        template: a chat template to use instead of the tokenizer's.
        split: split of a hub dataset.
        stops: token ids that end an answer, besides the EOS token and what the template writes.
        advance: called with 1 for every record, to show progress.

    Raises:
        ValueError: the source is empty, a record is malformed (unless skipped), no example is left,
            or a token is outside the vocabulary.
    """
    encoder, read = Encoder(tokenizer, template, max_length=max_length, stops=stops), ReadExamples()
    for number, record in enumerate(read_records(source, split)):
        if limit is not None and number >= limit:
            break
        if advance is not None:
            advance(1)
        try:
            example = encode_record(encoder, record)
        except BadRecordError as error:
            if not skip_bad:
                raise ValueError(f"{error} (--skip-bad passes over such records)") from None
            read.bad.append(str(error))
            continue
        _check_vocabulary(example, vocab_size, record.place)
        read.add(example, max_length)
    if not read.examples:
        raise ValueError(_nothing_to_learn(source, read, max_length))
    return read


def _check_vocabulary(example: Example, vocab_size: int, place: str) -> None:
    largest = max(example.ids, default=0)
    if largest >= vocab_size:
        raise ValueError(
            f"{place}: token {largest} is outside the model's vocabulary of {vocab_size}: "
            "tokenizer and model do not belong together"
        )


def _nothing_to_learn(source: str, read: ReadExamples, max_length: int) -> str:
    example = f", such as {read.bad[0]}" if read.bad else ""
    return (
        f"{source} holds nothing to learn from: {read.empty} records with no answer or none within "
        f"{max_length} tokens, {len(read.bad)} malformed ones{example}"
    )


def encode_record(encoder: Encoder, record: Record) -> Example:
    """Return the example of a record.

    Raises:
        BadRecordError: the record is malformed, or the chat template or the tokenizer refuses it;
            the message names its place.
    """
    try:
        return encoder(read_chat(record), read_tools(record))
    except MemoryError:
        raise
    except Exception as error:  # chat templates and tokenizers can raise any error
        message = " ".join(str(error).split()) or type(error).__name__
        raise BadRecordError(
            message if message.startswith(record.place) else f"{record.place}: {message}"
        ) from None


def pack(examples: Sequence[Example], max_length: int) -> list[list[Example]]:
    """Return rows of examples with at most `max_length` tokens each (best fit, longest first)."""
    rows: list[list[Example]] = []
    free_rows: list[tuple[int, int]] = []  # (free tokens, row index), sorted: the fullest row first
    for example in sorted(examples, key=lambda example: -len(example.ids)):
        fits = bisect.bisect_left(free_rows, (len(example.ids), 0))
        if fits < len(free_rows):
            left, place = free_rows.pop(fits)
            rows[place].append(example)
        else:
            left, place = max_length, len(rows)
            rows.append([example])
        bisect.insort(free_rows, (left - len(example.ids), place))
    return rows


def collator(pad: int) -> Callable[[Sequence[Sequence[Example]]], dict[str, Tensor]]:
    """Return a function that makes a batch of B rows of examples, padded on the right.

    A batch holds `input_ids`, `labels`, `position_ids` and `segments`, each [B, S]. `segments`
    numbers the examples of a row from 1; 0 is padding. As in transformers, a label stands at its
    own token's place; the first label of each example is `IGNORED`, since nothing predicts it.

    Args:
        pad: token id of the padding.
    """

    def collate(rows: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
        width = max(sum(len(example.ids) for example in row) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), width), pad),
            "labels": torch.full((len(rows), width), IGNORED),
            # Positions of padding continue the row's: transformers takes positions that start
            # again for packed examples and would build a mask for them.
            "position_ids": torch.arange(width).repeat(len(rows), 1),
            "segments": torch.zeros((len(rows), width), dtype=torch.long),
        }
        for index, row in enumerate(rows):
            begin = 0
            for number, example in enumerate(row, start=1):
                place = slice(begin, begin + len(example.ids))
                batch["input_ids"][index, place] = torch.tensor(example.ids)
                batch["labels"][index, place] = torch.tensor([IGNORED, *example.labels[1:]])
                batch["position_ids"][index, place] = torch.arange(len(example.ids))
                batch["segments"][index, place] = number
                begin = place.stop
        return batch

    return collate


def numbered_rows(
    examples: Sequence[Example], max_length: int | None = None
) -> list[tuple[int, list[Example]]]:
    """Return (number, row) pairs: packed rows of `max_length` tokens, or an example a row."""
    rows = pack(examples, max_length) if max_length else [[example] for example in examples]
    return list(enumerate(rows))


def collate_rows(pad: int) -> Callable[[Sequence[tuple[int, list[Example]]]], dict[str, Tensor]]:
    """Return a `collator` for numbered rows; the batch also holds their numbers, `rows` [B]."""
    collate = collator(pad)

    def collate_numbered(rows: Sequence[tuple[int, list[Example]]]) -> dict[str, Tensor]:
        return {
            **collate([row for _, row in rows]),
            "rows": torch.tensor([number for number, _ in rows]),
        }

    return collate_numbered


def batches(examples: Iterable[Example], tokens: int) -> Iterator[list[list[Example]]]:
    """Yield batches of one example a row, sorted by length, of at most `tokens` with padding."""
    batch: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: len(example.ids)):
        if batch and (len(batch) + 1) * len(example.ids) > tokens:
            yield batch
            batch = []
        batch.append([example])
    if batch:
        yield batch
