"""The key-value cache of tree decoding: rows are admitted and evicted, states are kept in place.

A row's states stand in columns 0 to its length; the nodes under verification stand in the N columns
behind that, and `keep` moves the accepted ones to the front of them.
Shapes: B rows, N tree nodes, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .masks import TreeBatch
from .slots import BLOCK, Slots, TreeLayer, power_of_two


class TreeCache(Cache):
    """A transformers cache in which rows come and go and accepted nodes are kept in place.

    Args:
        num_layers: attention layers of the model.
        expected: columns the requests are expected to need (prompt + new tokens + nodes). Memory is
            bounded by what is really used: the cache starts not much larger than the prompt and
            grows as the text does.
        static: keep the shapes and addresses of a step as they are for as long as possible, so that
            the step can be captured.
        named: name the columns that a tree is written to, so that a program can be given them.

    Attributes:
        length: number of kept columns of each row.
        padding: of each row, how many of those columns are left padding. Only a prefill has any.
        longest: tokens that each row's text may have in the end. The last of them is never run, and
            nodes past it are never delivered: they share the position before it, so that no
            position is asked for that the model may not have.
    """

    def __init__(
        self, num_layers: int, expected: int = BLOCK, static: bool = False, named: bool = False
    ):
        self.slots = Slots(expected, static, named)
        super().__init__(layers=[TreeLayer(self.slots) for _ in range(num_layers)])
        self.length: list[int] = []
        self.padding: list[int] = []
        self.longest: list[int | None] = []

    def begin_prefill(self, padding: Sequence[int], begin: int, end: int) -> None:
        """Let the next forward write columns `begin` to `end` of prompts.

        Args:
            padding: of each row, how many of its first columns are left padding.
        """
        self.padding, self.longest = list(padding), [None] * len(padding)
        self.length = [end] * len(padding)
        self.slots.rows, self.slots.begin, self.slots.end = len(padding), begin, end
        self.slots.columns = None

    def admit(
        self, prefilled: TreeCache, rows: Sequence[int], longest: Sequence[int | None] = ()
    ) -> None:
        """Take over rows of a prefilled cache as this cache's last rows.

        Args:
            prefilled: holds the states of prompts. It must not be used any more: where all its rows
                move into an empty cache, they are not copied.
            rows: which of its rows, in the order they are to have.
            longest: tokens that the text of each of them may have in the end.
        """
        spans = [(prefilled.padding[row], prefilled.length[row]) for row in rows]
        whole = list(rows) == list(range(len(prefilled.length))) and not any(prefilled.padding)
        if whole and not self.length and not self.slots.static:
            self.slots.rows, self.slots.end = len(rows), max(prefilled.length)
            self._hold(prefilled.states)
        else:
            self._reserve(len(self.length) + len(rows), max(end - begin for begin, end in spans))
            for mine, theirs in zip(self.layers, prefilled.layers, strict=True):
                if not mine.is_initialized:
                    mine.lazy_initialization(theirs.keys, theirs.values)
                mine.make_room()
            for store, states in zip(self.states, prefilled.states, strict=True):
                for place, (row, (begin, end)) in enumerate(zip(rows, spans, strict=True)):
                    store[len(self.length) + place, :, : end - begin] = states[row, :, begin:end]
        self.length = [*self.length, *(end - begin for begin, end in spans)]
        self.padding = [0] * len(self.length)
        self.longest = [*self.longest, *(longest or [None] * len(rows))]

    def begin_with(self, states: Sequence[Tensor], end: int) -> None:
        """Fill the first columns of an empty cache, whose only row will have `end` columns.

        Args:
            states: keys and values of all layers, each [heads, n, width].
        """
        self.slots.rows, self.slots.end = 1, end
        for layer, keys, values in zip(self.layers, states[::2], states[1::2], strict=True):
            layer.lazy_initialization(keys[None], values[None])
            layer.keys[0, :, : keys.shape[1]] = keys
            layer.values[0, :, : values.shape[1]] = values

    def copied(self, row: int, begin: int, end: int) -> list[Tensor]:
        """Return copies of a row's columns, each [heads, n, width], as `begin_with` takes them."""
        return [store[row, :, begin:end].clone() for store in self.states]

    def limit(self, rows: int, columns: int, tokens: int | None = None) -> None:
        """Expect to hold so many rows of so many columns, and allocate `tokens` for them at most.

        What was allocated for earlier rows is freed where both together would take more.

        Args:
            rows: as many as the cache holds, or more; 0 if others will be admitted in their place.
            columns: as many as any of these rows needs in the end.
            tokens: at least what such rows need; None for no limit.
        """
        slots = self.slots
        slots.expected, slots.most_rows = columns, None
        if tokens is None:
            return
        rows, columns = slots.rounded_rows(rows), slots.rounded(columns)
        had = self.allocated
        if max(rows, had[0]) * max(columns, had[1]) > tokens:
            for layer in self.layers:
                layer.cut(rows, min(columns, had[1]))
        slots.most_rows = tokens // max(columns, self.allocated[1])

    @property
    def allocated(self) -> tuple[int, int]:
        """The rows and columns for which there is memory."""
        stores = [layer.keys for layer in self.layers if layer.is_initialized]
        rows = max((len(store) for store in stores), default=0)
        return rows, max((store.shape[2] for store in stores), default=0)

    def _reserve(self, rows: int, columns: int) -> None:
        slots = self.slots
        slots.rows = slots.rounded_rows(rows)
        slots.end = max(columns, *self.length, 1)

    def evict(self, row: int) -> None:
        """Remove a row; the last row moves to its place."""
        last = len(self.length) - 1
        if row != last:
            kept = self.length[last]
            for store in self.states:
                store[row, :, :kept] = store[last, :, :kept]
        for name in ("length", "padding", "longest"):
            left = list(getattr(self, name))
            left[row] = left[last]
            setattr(self, name, left[:last])

    def clear(self) -> None:
        """Remove all rows; the allocated memory and captured steps stay valid."""
        self.length, self.padding, self.longest = [], [], []

    def saved(self) -> tuple[Any, ...]:
        """Return which columns are kept, for `restore`."""
        return self.length, self.padding, self.longest

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Undo `keep`, `admit` and `evict` since `saved`. The states of evicted rows are lost."""
        self.length, self.padding, self.longest = saved

    def begin_tree(self, nodes: int, device: torch.device) -> None:
        """Let the next forward write `nodes` nodes behind the last kept column of each row."""
        slots, lengths = self.slots, self.lengths
        slots.rows, slots.end = len(lengths), max(lengths) + nodes
        if slots.static:
            slots.end = power_of_two(slots.end, BLOCK)
        if min(lengths) == max(lengths) and not slots.named:
            slots.begin, slots.columns = lengths[0], None
        else:
            first = torch.tensor(lengths, device=device)[:, None]
            slots.columns = first + torch.arange(nodes, device=device)

    @property
    def lengths(self) -> list[int]:
        """The kept columns of each row that a step runs, idle rows of no columns included."""
        return [*self.length, *[0] * self._idle_rows()]

    def _idle_rows(self) -> int:
        """Return the rows that a step runs besides those that decode, so that its shape stays."""
        rows = len(self.length)
        if self.slots.static:
            return power_of_two(rows) - rows
        # a program for several rows does not run one, and compiling another takes long
        several = self.slots.named and any(len(store) > 1 for store in self.states[:1])
        return int(several and rows == 1)

    def make_room(self) -> None:
        """Allocate columns that the next forward needs."""
        for layer in self.layers:
            layer.make_room()

    def fits(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Return True if a model of this type on this device can write into this cache."""
        return all(
            each.keys.dtype == dtype and each.keys.device == device
            for each in self.layers
            if each.is_initialized
        )

    @property
    def states(self) -> list[Tensor]:
        """The keys and values of all layers, each [rows, heads, C, width]."""
        return [states for layer in self.layers for states in (layer.keys, layer.values)]

    def _hold(self, states: Sequence[Tensor]) -> None:
        for layer, keys, values in zip(self.layers, states[::2], states[1::2], strict=True):
            layer.keys, layer.values, layer.is_initialized = keys, values, True

    @property
    def addresses(self) -> tuple[int, ...]:
        """Addresses of the layers' states; a step captured with other addresses is not valid."""
        return tuple(layer.keys.data_ptr() for layer in self.layers if layer.is_initialized)

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the accepted nodes of the tree just written: their states move to the front.

        Args:
            paths: of each row, the accepted nodes from the root down; an empty path leaves the row
                as it was.
        """
        width = max(map(len, paths))
        padded = [[*path, *range(len(path), width)] for path in paths]
        if any(path != list(range(width)) for path in padded):
            first = torch.tensor(self.length)[:, None]
            source, target = first + torch.tensor(padded), first + torch.arange(width)
            for layer in self.layers:
                if layer.is_initialized:
                    _move(layer.keys, source, target)
                    _move(layer.values, source, target)
        self.length = [length + len(path) for length, path in zip(self.length, paths, strict=True)]

    def positions(self, trees: TreeBatch, device: torch.device) -> Tensor:
        """Return [B, N] position ids of the nodes: a row's own length plus each node's depth."""
        positions = torch.tensor(self.lengths, device=device)[:, None] + trees.depth.to(device)
        limits = [longest for longest in self.longest if longest is not None]
        if not limits or max(self.length) + trees.max_depth < min(limits) - 1:
            return positions
        unlimited = torch.iinfo(torch.long).max
        most = [unlimited if longest is None else longest - 2 for longest in self.longest]
        most += [unlimited] * (len(positions) - len(most))
        return positions.minimum(torch.tensor(most, device=device)[:, None])


class LayerCache(TreeCache):
    """The cache as one decoder layer sees it in a program that serves all layers alike.

    Args:
        columns: [B, N] columns to write.
        end: one past the last column in use.
        keys, values: [rows, heads, C, width] of the layer.
    """

    def __init__(self, columns: Tensor, end: int, keys: Tensor, values: Tensor):
        super().__init__(1)
        self.slots.rows, self.slots.columns, self.slots.end = columns.shape[0], columns, end
        self._hold([keys, values])

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the states of the layer, whatever its number; return those of columns in use."""
        return self.layers[0].written(key_states, value_states)


def _move(store: Tensor, source: Tensor, target: Tensor) -> None:
    """Copy columns source [B, n] of store [rows, heads, C, width] to columns target [B, n]."""
    source, target = source.to(store.device), target.to(store.device)
    if len(store) == 1:
        store.index_copy_(2, target[0], store.index_select(2, source[0]))
    else:
        rows = torch.arange(len(source), device=store.device)[:, None]
        store[rows, :, target] = store[rows, :, source]
