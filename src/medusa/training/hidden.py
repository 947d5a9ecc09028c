"""Cache of hidden states on disk: the backbone runs once over the data, for all epochs and runs.

Each set of hidden states is a subfolder whose name is the hash of what they were computed from:
weights, configuration and data. A subfolder gets its name only when it is complete.
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
from .training_model import TrainingModel

INDEX = "index.json"
SHARD_BYTES = 1 << 28
"""Approximate size of a file of hidden states, in bytes."""
NAME_LENGTH = 16
"""Number of characters of the hash in a subfolder's name."""
POLL_SECONDS = 0.5
"""Time between two looks for the hidden states that another process computes, in seconds."""

ExampleStates = tuple[int, Tensor, Tensor]
"""Number of an example, its hidden states [m, H] and targets [m, 1 + K] at m positions."""


class Index(Schema):
    """Index file of a subfolder.

    Attributes:
        digest: hash of what the hidden states were computed from.
        examples: (file number, begin, end) of each example's positions.
    """

    digest: str
    examples: list[tuple[int, int, int]]


class CachedStates(Sequence[ExampleStates]):
    """Hidden states and targets of each example, read from disk when indexed.

    Args:
        folder: subfolder of the cache.
        digest: hash that the index must have.

    Raises:
        ValueError: a file is damaged, or the index has another hash.
    """

    def __init__(self, folder: Path, digest: str):
        try:
            index = read_json(folder / INDEX, Index)
            self.folder, self.places = folder, index.examples
            shards = sorted({shard for shard, _, _ in self.places})
            self._files = {
                shard: safe_open(folder / _shard_name(shard), framework="pt") for shard in shards
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
        file = self._files[shard]
        return number, file.get_slice("hidden")[begin:end], file.get_slice("targets")[begin:end]


def is_complete(folder: Path) -> bool:
    """Return True if a subfolder of the cache is complete; its index is written last."""
    return (folder / INDEX).is_file()


def cache_bytes(model: TrainingModel, examples: Sequence[Example]) -> int:
    """Return the size of the examples' hidden states and targets on disk, in bytes."""
    heads = model.heads.config
    hidden = heads.hidden_size * model.base.dtype.itemsize
    targets = 8 * (1 + heads.num_heads)
    return sum(example.learnt for example in examples) * (hidden + targets)


def cached_states(
    model: TrainingModel,
    examples: Sequence[Example],
    cache: Path,
    tokens: int = 8192,
    say: Callable[[str], None] | None = None,
    computes: bool = True,
) -> CachedStates:
    """Return the hidden states of the examples; compute them if the cache does not have them.

    Args:
        model: the model whose backbone runs.
        examples: examples to run it over.
        cache: folder of the subfolders; several runs can share it.
        tokens: number of tokens in a batch, with padding.
        say: prints a line; None prints nothing.
        computes: False waits until another process has computed the hidden states.

    Raises:
        ValueError: the cached hidden states are damaged.
    """
    fingerprint = _fingerprint(model.base, model.heads.config.num_heads, examples)
    folder = cache / fingerprint[:NAME_LENGTH]
    # Polling, not a barrier of torch.distributed, which would time out after some minutes.
    while not (computes or is_complete(folder)):
        time.sleep(POLL_SECONDS)
    if not is_complete(folder):
        tell = say or (lambda line: None)
        message = f"another run computes the hidden states in {folder}: waiting for it"
        with locked(folder, waiting=lambda: tell(message)):
            if not is_complete(folder):  # the other run may have completed them meanwhile
                tell(
                    f"the backbone runs over {len(examples)} examples; their hidden states are "
                    f"kept in {folder}"
                )
                total = sum(len(example.ids) for example in examples)
                with progress(
                    "hidden states", total, "tokens", say, shown=say is not None
                ) as advance:
                    _compute(model, examples, folder, fingerprint, tokens, advance)
    return CachedStates(folder, fingerprint)


def _compute(
    model: TrainingModel,
    examples: Sequence[Example],
    folder: Path,
    fingerprint: str,
    tokens: int,
    advance: Advance,
) -> None:
    """Compute the hidden states of the examples and write them to `folder` when complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a run that was killed
    unfinished.mkdir(parents=True)
    places: dict[int, tuple[int, int, int]] = {}
    shard, filled = 0, 0
    pending: list[tuple[Tensor, Tensor]] = []
    try:
        for number, hidden, targets in hidden_states(model, examples, tokens, advance):
            places[number] = shard, filled, filled + len(hidden)
            pending.append((hidden.cpu(), targets.cpu()))
            filled += len(hidden)
            if filled * hidden.shape[-1] * hidden.element_size() >= SHARD_BYTES:
                _write_shard(unfinished / _shard_name(shard), pending)
                shard, pending, filled = shard + 1, [], 0
        if pending:
            _write_shard(unfinished / _shard_name(shard), pending)
        index = {
            "digest": fingerprint,
            "examples": [places[number] for number in range(len(examples))],
        }
        write_json(unfinished / INDEX, index)
        shutil.rmtree(folder, ignore_errors=True)  # a folder without an index is of no use
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@torch.no_grad()
def hidden_states(
    model: TrainingModel,
    examples: Sequence[Example],
    tokens: int = 8192,
    advance: Advance | None = None,
) -> Iterator[ExampleStates]:
    """Yield the number, hidden states [m, H] and targets [m, 1 + K] of each example, by length.

    Args:
        model: the model whose backbone runs.
        examples: examples to run it over.
        tokens: number of tokens in a batch, with padding.
        advance: called with the number of tokens of each finished batch.
    """
    numbers = {id(example): number for number, example in enumerate(examples)}
    collate = collator(0)
    device = next(model.base.parameters()).device
    model.eval()
    for rows in batches(examples, tokens):
        batch = {name: tensor.to(device) for name, tensor in collate(rows).items()}
        learnt = model.positions(**batch)
        following = next_targets(batch["labels"], batch["segments"])
        targets = torch.cat([learnt.next[:, None], learnt.ahead], 1)
        lengths = (following != IGNORED).sum(1).tolist()
        parts = zip(learnt.hidden.split(lengths), targets.split(lengths), strict=True)
        for row, (hidden, target) in zip(rows, parts, strict=True):
            # Clones, because a view would keep the whole batch in memory.
            yield numbers[id(row[0])], hidden.clone(), target.clone()
        if advance is not None:
            advance(sum(len(row[0].ids) for row in rows))


def collate_states(examples: Sequence[ExampleStates]) -> dict[str, Tensor]:
    """Return a batch: `hidden` [M, H], `targets` [M, 1 + K], and the examples' numbers, `rows`."""
    numbers, hidden, targets = zip(*examples, strict=True)
    return {
        "hidden": torch.cat(hidden),
        "targets": torch.cat(targets),
        "rows": torch.tensor(numbers),
    }


def _write_shard(file: Path, pending: list[tuple[Tensor, Tensor]]) -> None:
    hidden, targets = zip(*pending, strict=True)
    save_file(
        {"hidden": torch.cat(hidden).contiguous(), "targets": torch.cat(targets).contiguous()}, file
    )


def _shard_name(shard: int) -> str:
    return f"states-{shard:05d}.safetensors"


def _fingerprint(base: PreTrainedModel, num_heads: int, examples: Sequence[Example]) -> str:
    """Return the hash of weights, configuration and data; it identifies the hidden states.

    Of each weight some 64 values are hashed, because reading all of them takes too long.
    """
    hashed = hashlib.sha256(f"{num_heads} {base.config.to_json_string()}".encode())
    for name, weight in base.named_parameters():
        values = weight.detach().flatten()
        some = values[:: max(1, values.numel() // 64)].float().cpu()
        hashed.update(name.encode() + some.numpy().tobytes())
    hashed.update(digest(examples).encode())
    return hashed.hexdigest()
