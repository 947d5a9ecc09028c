"""The tensors of the key-value cache: what is allocated, and which columns a forward writes.

Shapes: B rows, C columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

BLOCK = 256
"""Columns are allocated in multiples of this number."""


class Slots:
    """The columns that a forward writes. All layers share them, so a step computes them once.

    Attributes:
        rows: rows of the forward.
        begin: first column written, where all rows write the same ones.
        end: one past the last column that any row uses.
        columns: [B, n] columns that each row writes, where rows differ; else None.
        most_rows: rows up to which more are allocated than are in use; None for no limit.

    Args:
        expected: columns that the requests are expected to need.
        static: keep shapes as they are for as long as possible: rows and columns in use are powers
            of two, and columns are always named.
        named: name the columns of a tree even where all rows write the same, and allocate more
            than are in use.
    """

    def __init__(self, expected: int, static: bool = False, named: bool = False):
        self.expected = expected
        self.static = static
        self.named = named or static
        self.spare = int(named and not static)
        self.rows, self.begin, self.end = 0, 0, 0
        self.columns: Tensor | None = None
        self.most_rows: int | None = None

    def capacity(self) -> int:
        """Return the columns to allocate: half as many again as are in use, but not more than the
        requests are expected to need.
        """
        if self.static:
            return self.rounded(self.end)
        ample = self.end + max(BLOCK, self.end // 2)
        return self.rounded(min(ample, self.expected) if self.end <= self.expected else ample)

    def rounded(self, columns: int) -> int:
        """Return the columns to allocate where so many are needed."""
        if self.static:
            return power_of_two(columns, BLOCK)
        return -(-(columns + self.spare) // BLOCK) * BLOCK

    def rounded_rows(self, rows: int) -> int:
        """Return the rows to allocate where so many are needed."""
        return power_of_two(rows) if self.static and rows else rows

    def tokens(self, rows: int, columns: int) -> int:
        """Return rows times columns of what is allocated where so many are needed."""
        return self.rounded_rows(rows) * self.rounded(columns)

    def write(self, store: Tensor, states: Tensor) -> None:
        """Write states [B, heads, n, width] into a store [rows, heads, C, width]."""
        if self.columns is None:
            store.narrow(0, 0, states.shape[0]).narrow(2, self.begin, states.shape[2]).copy_(states)
        else:
            rows = torch.arange(states.shape[0], device=states.device)[:, None]
            store[rows, :, self.columns.to(states.device)] = states.transpose(1, 2)


class TreeLayer(CacheLayerMixin):
    """Keys and values of one layer, each [rows, heads, C, width]; a forward uses the first rows."""

    is_sliding = False

    def __init__(self, slots: Slots):
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, columns = self.slots.rows, self.slots.capacity()
        self.keys, self.values = (
            states.new_zeros((rows, states.shape[1], columns, states.shape[-1]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new states to the slots; return the states of all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.make_room()
        return self.written(key_states, value_states)

    def written(self, key_states: Tensor, value_states: Tensor) -> tuple[Tensor, Tensor]:
        """Do as `update` where there is room for the new states."""
        used = []
        for store, states in ((self.keys, key_states), (self.values, value_states)):
            self.slots.write(store, states)
            used.append(store.narrow(0, 0, states.shape[0]).narrow(2, 0, self.slots.end))
        return used[0], used[1]

    def make_room(self) -> None:
        """Allocate rows and columns up to the last in use."""
        self.keys, self.values = self._grown(self.keys), self._grown(self.values)

    def _grown(self, store: Tensor) -> Tensor:
        rows, _, columns, _ = store.shape
        if rows >= self.slots.rows and columns >= self.slots.end + self.slots.spare:
            return store
        if rows < self.slots.rows:
            ample, most = min(2 * rows, self.slots.rows + 8), self.slots.most_rows
            rows = max(self.slots.rows, ample if most is None else min(ample, most))
        if columns < self.slots.end + self.slots.spare:
            columns = self.slots.capacity()
        return _resized(store, rows, columns)

    def cut(self, rows: int, columns: int) -> None:
        """Allocate just so many rows and columns, and drop the states of all others."""
        if not rows:
            self.is_initialized = False
            self.keys = self.values = torch.empty(0)
        elif self.is_initialized:
            self.keys = _resized(self.keys, rows, columns)
            self.values = _resized(self.values, rows, columns)

    def get_seq_length(self) -> int:
        return self.slots.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.begin + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # its name in earlier transformers
        return -1


def power_of_two(count: int, unit: int = 1) -> int:
    """Return the smallest of `unit`, 2 `unit`, 4 `unit`, ... that holds `count`."""
    return unit << max(0, -(-count // unit) - 1).bit_length()


def _resized(store: Tensor, rows: int, columns: int) -> Tensor:
    """Return a store of so many rows and columns, with those of another that fit into it."""
    kept = store[:rows, :, :columns]
    cut = store.new_zeros((rows, store.shape[1], columns, store.shape[3]))
    cut[: len(kept), :, : kept.shape[2]] = kept
    return cut
