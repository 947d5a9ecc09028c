"""Keys and values of earlier texts, which later prompts with the same first tokens reuse.

Texts are cut into blocks of tokens. A block is found by the block before it and by its own tokens,
so texts share the blocks of their common beginning. The blocks that were used least recently are
dropped first.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .cache import TreeCache

SIZE = 32
"""Tokens of a block."""

Key = tuple[int, tuple[int, ...]]
"""Number of the block before, and a block's own tokens."""


@dataclass(frozen=True)
class Block:
    """States of some tokens of a text.

    Attributes:
        number: identifies the block, also after it was dropped.
        states: keys and values of all layers, each [heads, SIZE, width].
    """

    number: int
    states: list[Tensor]


class Prefixes:
    """The blocks of earlier texts, for one model.

    Args:
        most: tokens that are kept.

    Attributes:
        weights: execution state of the model that computed the blocks.
    """

    def __init__(self, most: int):
        self.most = most
        self.weights: Any = None
        self._blocks: OrderedDict[Key, Block] = OrderedDict()  # the last were used last
        self._numbers = itertools.count(1)

    @property
    def tokens(self) -> int:
        """Tokens whose states are kept."""
        return SIZE * len(self._blocks)

    def use(self, weights: Any) -> None:
        """Drop everything if the model has other weights than before."""
        if weights != self.weights:
            self.limit(0)
            self.weights = weights

    def limit(self, tokens: int) -> None:
        """Drop what was used least recently, until so many tokens are left at most."""
        while self.tokens > max(tokens, 0):
            self._blocks.popitem(last=False)

    def shared(self, ids: Sequence[int]) -> int:
        """Return how many of a prompt's first tokens are kept, its last token excluded."""
        return SIZE * len(self._chain(ids[:-1]))

    def load(self, ids: Sequence[int], cache: TreeCache) -> int:
        """Write the states of a prompt's first tokens into an empty cache; return their number."""
        keys = self._chain(ids[:-1])
        if keys:
            self._touch(keys)
            parts = zip(*(self._blocks[key].states for key in keys), strict=True)
            cache.begin_with([torch.cat(part, 1) for part in parts], len(ids))
        return SIZE * len(keys)

    def store(self, ids: Sequence[int], cache: TreeCache, row: int, most: int) -> None:
        """Keep the states of a text.

        Args:
            ids: the text's first tokens, whose states are in the cache.
            row: the text's place in the cache.
            most: tokens that all texts may take now.
        """
        room = max(0, min(most, self.most)) // SIZE
        keys = self._chain(ids)[:room]
        self._touch(keys)
        parent = self._blocks[keys[-1]].number if keys else 0
        for begin in range(SIZE * len(keys), len(ids) - SIZE + 1, SIZE):
            if len(keys) == room:
                break
            self.limit(SIZE * (room - 1))
            key = parent, tuple(ids[begin : begin + SIZE])
            try:
                states = cache.copied(row, begin, begin + SIZE)
            except (MemoryError, torch.OutOfMemoryError):  # requests need the memory more
                return self.limit(0)
            block = Block(next(self._numbers), states)
            self._blocks[key], parent = block, block.number
            keys.append(key)
        self._touch(keys)

    def _chain(self, ids: Sequence[int]) -> list[Key]:
        """Return the keys of the blocks with which a text begins."""
        found: list[Key] = []
        parent = 0
        for begin in range(0, len(ids) - SIZE + 1, SIZE):
            key = parent, tuple(ids[begin : begin + SIZE])
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(key)
            parent = block.number
        return found

    def _touch(self, keys: Sequence[Key]) -> None:
        """Mark the blocks of a text as used. A block is dropped before the one that it follows."""
        for key in reversed(keys):
            self._blocks.move_to_end(key)
