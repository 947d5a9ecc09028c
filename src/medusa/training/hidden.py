"""Hidden states kept on disk, so that heads on a frozen backbone train for several epochs on one run of it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from .chats import IGNORED, Example, digest
from .data import batches, collator
from .losses import next_targets
from .student import Student

INDEX = "index.json"
SHARD = 1 << 28
"""Bytes of a file, about."""


class HiddenStates(Sequence[tuple[int, Tensor, Tensor]]):
    """What the heads see and should say, example by example: its number, hidden [m, H] and targets [m, 1 + K].

    Args:
        folder: of the files.

    Raises:
        ValueError: the files are not what was asked for.
    """

    def __init__(self, folder: Path, digest: str):
        told = json.loads((folder / INDEX).read_text())
        if told["digest"] != digest:
            raise ValueError(f"{folder} holds hidden states of another model or other data: delete it, or take another")
        self.folder, self.places = folder, [tuple(each) for each in told["examples"]]
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: Any) -> Any:
        shard, begin, end = self.places[number]
        if shard not in self._open:
            self._open[shard] = safe_open(self.folder / _name(shard), framework="pt")
        file = self._open[shard]
        return number, file.get_slice("hidden")[begin:end], file.get_slice("targets")[begin:end]


def is_kept(folder: Path) -> bool:
    """Whether `keep` has been here, to the end."""
    return (folder / INDEX).is_file()


def keep(
    student: Student, examples: Sequence[Example], folder: Path, tokens: int = 8192, bar: Any = iter
) -> HiddenStates:
    """Run the backbone over the examples once, unless the folder has their states already.

    Args:
        tokens: of a batch, with padding.
        bar: shows progress over the batches.

    Raises:
        ValueError: the folder holds states of another model or other data.
    """
    state = _digest(student.base, student.heads.config.num_heads, examples)
    if is_kept(folder):
        return HiddenStates(folder, state)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    places: dict[int, tuple[int, int, int]] = {}
    shard, filled = 0, 0
    kept: list[tuple[Tensor, Tensor]] = []
    for number, hidden, targets in states(student, examples, tokens, bar):
        places[number] = shard, filled, filled + len(hidden)
        kept.append((hidden.cpu(), targets.cpu()))
        filled += len(hidden)
        if filled * hidden.shape[-1] * hidden.element_size() >= SHARD:
            _write(unfinished / _name(shard), kept)
            shard, kept, filled = shard + 1, [], 0
    if kept:
        _write(unfinished / _name(shard), kept)
    told = {"digest": state, "examples": [places[number] for number in range(len(examples))]}
    (unfinished / INDEX).write_text(json.dumps(told))
    unfinished.rename(folder)
    return HiddenStates(folder, state)


@torch.no_grad()
def states(
    student: Student, examples: Sequence[Example], tokens: int = 8192, bar: Any = iter
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number of every example, its hidden states [m, H] and targets [m, 1 + K]; shortest examples first."""
    numbers = {id(example): number for number, example in enumerate(examples)}
    collate = collator(0)
    device = next(student.base.parameters()).device
    student.eval()
    for rows in bar(list(batches(examples, tokens))):
        batch = {name: each.to(device) for name, each in collate(rows).items()}
        learnt = student.positions(**batch)
        own = next_targets(batch["labels"], batch["segments"])
        targets = torch.cat([learnt.next[:, None], learnt.ahead], 1)
        lengths = (own != IGNORED).sum(1).tolist()
        parts = zip(learnt.hidden.split(lengths), targets.split(lengths), strict=True)
        for row, (hidden, target) in zip(rows, parts, strict=True):
            yield numbers[id(row[0])], hidden.clone(), target.clone()


def collate_states(rows: Sequence[tuple[int, Tensor, Tensor]]) -> dict[str, Tensor]:
    """`hidden` [M, H] and `targets` [M, 1 + K] of several examples, and their `rows`."""
    numbers, hidden, targets = zip(*rows, strict=True)
    return {"hidden": torch.cat(hidden), "targets": torch.cat(targets), "rows": torch.tensor(numbers)}


def _write(file: Path, kept: list[tuple[Tensor, Tensor]]) -> None:
    hidden, targets = zip(*kept, strict=True)
    save_file({"hidden": torch.cat(hidden).contiguous(), "targets": torch.cat(targets).contiguous()}, file)


def _name(shard: int) -> str:
    return f"states-{shard:05d}.safetensors"


def _digest(base: PreTrainedModel, heads: int, examples: Sequence[Example]) -> str:
    """Of what decides the states: some values of every weight, and all ids and labels."""
    told = hashlib.sha256(f"{heads} {base.config.to_json_string()}".encode())
    for name, weight in base.named_parameters():
        values = weight.detach().flatten()
        some = values[:: max(1, values.numel() // 64)].float().cpu()
        told.update(name.encode() + some.numpy().tobytes())
    told.update(digest(examples).encode())
    return told.hexdigest()
