"""Hidden states kept on disk: the backbone runs once over the data, for all epochs and all runs
that share a folder.

Each set of states lies in a subfolder named by the digest of what they were computed from. The
subfolder gets its name when it is complete.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..data.chats import IGNORED, Example, digest
from ..data.examples import batches, collator
from ..files import Schema, locked, read_json, write_json
from .losses import next_targets
from .progress import Advance, progress
from .student import Student

INDEX = "index.json"
SHARD = 1 << 28
"""Bytes of a file, about."""
NAME = 16
"""Characters of the digest that name a subfolder."""


class Index(Schema):
    """What a subfolder holds: a digest, and file, begin and end of every example's states."""

    digest: str
    examples: list[tuple[int, int, int]]


class HiddenStates(Sequence[tuple[int, Tensor, Tensor]]):
    """What the heads see and should say, example by example: its number, hidden [m, H] and targets
    [m, 1 + K].

    Args:
        folder: of the files.
        digest: of what they should have been computed from.

    Raises:
        ValueError: a file is damaged, or the files are not what was asked for.
    """

    def __init__(self, folder: Path, digest: str):
        try:
            index = read_json(folder / INDEX, Index)
            self.folder, self.places = folder, index.examples
            shards = sorted({shard for shard, _, _ in self.places})
            self._open = {
                shard: safe_open(folder / _name(shard), framework="pt") for shard in shards
            }
        except (ValueError, FileNotFoundError, SafetensorError) as error:
            raise ValueError(
                f"{folder} holds damaged hidden states ({error}): delete it to compute them again"
            ) from None
        if index.digest != digest:
            raise ValueError(
                f"{folder} holds hidden states of another model or other data: delete it"
            )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: Any) -> Any:
        shard, begin, end = self.places[number]
        file = self._open[shard]
        return number, file.get_slice("hidden")[begin:end], file.get_slice("targets")[begin:end]


def is_kept(folder: Path) -> bool:
    """Whether a subfolder is complete."""
    return (folder / INDEX).is_file()


def kept_bytes(student: Student, examples: Sequence[Example]) -> int:
    """Return how many bytes the states of the examples take on disk."""
    heads = student.heads.config
    return sum(each.learnt for each in examples) * (
        heads.hidden_size * student.base.dtype.itemsize + 8 + 8 * heads.num_heads
    )


def keep(
    student: Student,
    examples: Sequence[Example],
    place: Path,
    tokens: int = 8192,
    say: Callable[[str], None] | None = None,
    computes: bool = True,
) -> HiddenStates:
    """Run the backbone over the examples, unless `place` has their states already.

    Args:
        place: folder of the subfolders, which several runs can share.
        tokens: of a batch, with padding.
        say: told what happens, a line each; None keeps it quiet.
        computes: False waits until another process has computed the states.

    Raises:
        ValueError: the states that are there are damaged.
    """
    state = _digest(student.base, student.heads.config.num_heads, examples)
    folder = place / state[:NAME]
    while not (computes or is_kept(folder)):  # a barrier would have a time limit
        time.sleep(0.5)
    if is_kept(folder):
        return HiddenStates(folder, state)
    tell = say or (lambda line: None)
    with locked(
        folder,
        waiting=lambda: tell(f"another run computes the hidden states in {folder}: waiting for it"),
    ):
        if not is_kept(folder):
            tell(
                f"the backbone runs over {len(examples)} examples; their hidden states are kept in "
                f"{folder}"
            )
            with progress(
                "hidden states",
                sum(len(each.ids) for each in examples),
                "tokens",
                say,
                shown=say is not None,
            ) as advance:
                _compute(student, examples, folder, state, tokens, advance)
    return HiddenStates(folder, state)


def _compute(
    student: Student,
    examples: Sequence[Example],
    folder: Path,
    state: str,
    tokens: int,
    advance: Advance,
) -> None:
    """Write the states of the examples to `folder`, which appears when it is complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    unfinished.mkdir(parents=True)
    places: dict[int, tuple[int, int, int]] = {}
    shard, filled = 0, 0
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for number, hidden, targets in states(student, examples, tokens, advance):
            places[number] = shard, filled, filled + len(hidden)
            kept.append((hidden.cpu(), targets.cpu()))
            filled += len(hidden)
            if filled * hidden.shape[-1] * hidden.element_size() >= SHARD:
                _write(unfinished / _name(shard), kept)
                shard, kept, filled = shard + 1, [], 0
        if kept:
            _write(unfinished / _name(shard), kept)
        index = {"digest": state, "examples": [places[number] for number in range(len(examples))]}
        write_json(unfinished / INDEX, index)
        shutil.rmtree(folder, ignore_errors=True)  # without an index, nobody reads it
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@torch.no_grad()
def states(
    student: Student,
    examples: Sequence[Example],
    tokens: int = 8192,
    advance: Advance | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the number of every example, its hidden states [m, H] and targets [m, 1 + K]; shortest
    examples first.

    Args:
        tokens: of a batch, with padding.
        advance: told the tokens of each batch, when it is done.
    """
    numbers = {id(example): number for number, example in enumerate(examples)}
    collate = collator(0)
    device = next(student.base.parameters()).device
    student.eval()
    for rows in batches(examples, tokens):
        batch = {name: each.to(device) for name, each in collate(rows).items()}
        learnt = student.positions(**batch)
        own = next_targets(batch["labels"], batch["segments"])
        targets = torch.cat([learnt.next[:, None], learnt.ahead], 1)
        lengths = (own != IGNORED).sum(1).tolist()
        parts = zip(learnt.hidden.split(lengths), targets.split(lengths), strict=True)
        for row, (hidden, target) in zip(rows, parts, strict=True):
            yield numbers[id(row[0])], hidden.clone(), target.clone()
        if advance is not None:
            advance(sum(len(row[0].ids) for row in rows))


def collate_states(rows: Sequence[tuple[int, Tensor, Tensor]]) -> dict[str, Tensor]:
    """`hidden` [M, H] and `targets` [M, 1 + K] of several examples, and their `rows`."""
    numbers, hidden, targets = zip(*rows, strict=True)
    return {
        "hidden": torch.cat(hidden),
        "targets": torch.cat(targets),
        "rows": torch.tensor(numbers),
    }


def _write(file: Path, kept: list[tuple[Tensor, Tensor]]) -> None:
    hidden, targets = zip(*kept, strict=True)
    save_file(
        {"hidden": torch.cat(hidden).contiguous(), "targets": torch.cat(targets).contiguous()}, file
    )


def _name(shard: int) -> str:
    return f"states-{shard:05d}.safetensors"


def _digest(base: PreTrainedModel, heads: int, examples: Sequence[Example]) -> str:
    """Return the digest of what decides the states: some values of every weight, and all ids and
    labels.
    """
    told = hashlib.sha256(f"{heads} {base.config.to_json_string()}".encode())
    for name, weight in base.named_parameters():
        values = weight.detach().flatten()
        some = values[:: max(1, values.numel() // 64)].float().cpu()
        told.update(name.encode() + some.numpy().tobytes())
    told.update(digest(examples).encode())
    return told.hexdigest()
