"""The key-value cache of tree decoding: written at given columns, kept in place, never copied as it
ages.

This is the only room that knows cache internals. Shapes: B rows, N tree nodes, D tree depth, C
    columns.
Row b occupies columns `start[b]` (its left padding before) up to `length[b]`; the nodes under
verification stand in the N columns after that, and `keep` moves the accepted ones down to the front
of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .tree import CandidateTree

BLOCK = 256
"""Columns are allocated in multiples of this."""


class TreeLayer(CacheLayerMixin):
    """Keys and values of one layer, [B, heads, C, width] each."""

    is_sliding = False

    def __init__(self, slots: Slots):
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        capacity = self.slots.capacity()
        self.keys, self.values = (
            states.new_zeros((*states.shape[:2], capacity, states.shape[-1]))
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new states at the slots' columns; returns all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.make_room()
        self.slots.write(self.keys, key_states)
        self.slots.write(self.values, value_states)
        return self.keys.narrow(2, 0, self.slots.end), self.values.narrow(2, 0, self.slots.end)

    def make_room(self) -> None:
        """Allocate columns up to the last one in use."""
        if self.keys.shape[2] < self.slots.end + self.slots.spare:
            self.keys, self.values = self._grown(self.keys), self._grown(self.values)

    def _grown(self, states: Tensor) -> Tensor:
        larger = states.new_zeros((*states.shape[:2], self.slots.capacity(), states.shape[-1]))
        larger.narrow(2, 0, states.shape[2]).copy_(states)
        return larger

    def get_seq_length(self) -> int:
        return self.slots.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.begin + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:  # its name in earlier transformers
        return -1


class Slots:
    """Where the next states go; shared by all layers, so that a step decides it once.

    Attributes:
        begin: first column written, where all rows write the same ones.
        end: one past the last column in use by any row.
        columns: [B, n] columns of each row, where rows differ; else None.

    Args:
        expected: columns the request is expected to need.
        static: keep shapes as they are for as long as possible: columns in use are powers of two,
            and always named.
        named: name the columns of a tree even where all rows write the same, and allocate more than
            are in use.
    """

    def __init__(self, expected: int, static: bool = False, named: bool = False):
        self.expected = expected
        self.static = static
        self.named = named or static
        self.spare = int(named and not static)
        self.begin = 0
        self.end = 0
        self.columns: Tensor | None = None

    def capacity(self) -> int:
        """Columns to allocate: half as many again as are in use, but not more than the request is
        expected to need.
        """
        if self.static:
            return power_of_two(self.end)
        ample = self.end + max(BLOCK, self.end // 2)
        needed = min(ample, self.expected) if self.end <= self.expected else ample
        return -(-(needed + self.spare) // BLOCK) * BLOCK

    def write(self, store: Tensor, states: Tensor) -> None:
        if self.columns is None:
            store.narrow(2, self.begin, states.shape[2]).copy_(states)
        else:
            rows = torch.arange(len(states), device=states.device)[:, None]
            store[rows, :, self.columns.to(states.device)] = states.transpose(1, 2)


class TreeCache(Cache):
    """A transformers cache for prefill, tree verification and in-place keeping.

    Args:
        num_layers: how many attention layers the model has.
        expected: columns the request is expected to need (prompt + new tokens + nodes). Memory is
            bounded by what is really used: the cache starts not much larger than the prompt and
                grows as the text does.
        longest: [B] tokens each row may have in the end. The last of them is never run, and nodes
            past it are never delivered: they share the position before it, so that no position is
                asked for that the model may not have.
        static: keep the shapes and addresses of a step as they are for as long as possible, so that
            it can be captured.
        named: name the columns a tree is written to, so that a program can be told of them.
    """

    def __init__(
        self,
        num_layers: int,
        expected: int = BLOCK,
        longest: list[int] | None = None,
        static: bool = False,
        named: bool = False,
    ):
        self.longest = longest
        self.slots = Slots(expected, static, named)
        super().__init__(layers=[TreeLayer(self.slots) for _ in range(num_layers)])
        self.start: list[int] = []
        self.length: list[int] = []

    def begin_prefill(self, padding: list[int], width: int) -> None:
        """The next forward writes prompts of `width` columns, the first `padding[b]` of which are
        padding.
        """
        self.start, self.length = list(padding), [width] * len(padding)
        self.slots.begin, self.slots.end, self.slots.columns = 0, width, None

    def begin_tree(self, nodes: int, device: torch.device) -> None:
        """The next forward writes `nodes` nodes behind each row's last kept column."""
        self.slots.end = max(self.length) + nodes
        if self.slots.static:
            self.slots.end = power_of_two(self.slots.end)
        if min(self.length) == max(self.length) and not self.slots.named:
            self.slots.begin, self.slots.columns = self.length[0], None
        else:
            first = torch.tensor(self.length, device=device)[:, None]
            self.slots.columns = first + torch.arange(nodes, device=device)

    def make_room(self) -> None:
        """Grow now, where the next forward would have to."""
        for layer in self.layers:
            layer.make_room()

    def fits(self, rows: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether a request of so many rows could write where this cache does."""
        return len(self.start) == rows and all(
            each.keys.dtype == dtype and each.keys.device == device
            for each in self.layers
            if each.is_initialized
        )

    def reuse(self, other: TreeCache) -> None:
        """Write where another cache did, which is no longer used: what was captured with it stays
        valid.
        """
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.keys, mine.values, mine.is_initialized = (
                theirs.keys,
                theirs.values,
                theirs.is_initialized,
            )

    @property
    def states(self) -> list[Tensor]:
        """The keys and values of all layers, [B, heads, C, width] each."""
        return [states for layer in self.layers for states in (layer.keys, layer.values)]

    @contextmanager
    def lent(self, columns: Tensor, end: int, states: Sequence[Tensor]) -> Iterator[None]:
        """While the context lasts, the next forward writes to other tensors than the cache's own.

        Args:
            columns: [B, N] where to write.
            end: one past the last column in use.
            states: as `states`.
        """
        own, place = self.states, (self.slots.columns, self.slots.end)
        self._hold(states)
        self.slots.columns, self.slots.end = columns, end
        try:
            yield
        finally:
            self._hold(own)
            self.slots.columns, self.slots.end = place

    def _hold(self, states: Sequence[Tensor]) -> None:
        for layer, keys, values in zip(self.layers, states[::2], states[1::2], strict=True):
            layer.keys, layer.values = keys, values

    @property
    def addresses(self) -> tuple[int, ...]:
        """Where the layers' states lie; other addresses make what was captured with these
        invalid.
        """
        return tuple(layer.keys.data_ptr() for layer in self.layers if layer.is_initialized)

    def keep(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the accepted nodes of the tree just written: their states move to the front, in
        place.

        Args:
            paths: of each row, the accepted nodes from the root down; none leaves the row as it
                was.
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

    def positions(self, tree: CandidateTree, device: torch.device) -> Tensor:
        """[B, N] position ids of the nodes: a row's own length plus each node's depth."""
        lengths = [length - start for length, start in zip(self.length, self.start, strict=True)]
        positions = torch.tensor(lengths, device=device)[:, None] + tree.depth.to(device)
        if self.longest is None or max(lengths) + tree.max_depth < min(self.longest) - 1:
            return positions
        return positions.minimum(torch.tensor(self.longest, device=device)[:, None] - 2)

    def visible(
        self, tree: CandidateTree, device: torch.device, window: int | None = None
    ) -> Tensor:
        """[B, N, C] what each node sees: its row's context, its ancestors and itself.

        Args:
            window: how many positions back a node sees, itself counted, in sliding-window layers.
        """
        columns = torch.arange(self.slots.end, device=device)
        start, length = (torch.tensor(x, device=device)[:, None] for x in (self.start, self.length))
        offset = columns - length
        in_tree = (offset >= 0) & (offset < len(tree))
        node = offset.clamp(0, len(tree) - 1)
        context = (columns >= start) & (offset < 0)
        seen = torch.where(
            in_tree[:, None], tree.mask.to(device)[:, node].transpose(0, 1), context[:, None]
        )
        if window is not None:
            depth = tree.depth.to(device)
            position = torch.where(in_tree, length + depth[node], columns)
            seen &= (length + depth)[:, :, None] - position[:, None] < window
        return seen

    def tree_mask(
        self,
        tree: CandidateTree,
        dtype: torch.dtype,
        device: torch.device,
        window: int | None = None,
    ) -> Tensor:
        """[B, 1, N, C] additive mask: 0 where a node sees, the lowest number where it does not."""
        # eager attention computes its softmax in float32, where a float64's lowest number overflows
        lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
        if window is None and min(self.length) == max(self.length) and not any(self.start):
            begin, end = self.length[0], self.length[0] + len(tree)
            mask = torch.zeros(1, 1, len(tree), self.slots.end, dtype=dtype, device=device)
            mask[..., begin:end] = _own_mask(tree, lowest, dtype, device)
            if end < self.slots.end:
                mask[..., end:] = lowest
            return mask.expand(len(self.start), -1, -1, -1)
        seen = self.visible(tree, device, window)
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, lowest)[
            :, None
        ]


@lru_cache
def _own_mask(
    tree: CandidateTree, lowest: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """[N, N] additive mask among the nodes themselves."""
    return (
        torch.zeros(len(tree), len(tree), dtype=dtype).masked_fill_(~tree.mask, lowest).to(device)
    )


def power_of_two(columns: int) -> int:
    """The next of `BLOCK`, 2 `BLOCK`, 4 `BLOCK`, ..."""
    return BLOCK << max(0, (columns - 1) // BLOCK).bit_length()


def _move(store: Tensor, source: Tensor, target: Tensor) -> None:
    """Copy columns source [B, n] of store [B, heads, C, width] to columns target [B, n]."""
    source, target = source.to(store.device), target.to(store.device)
    if len(store) == 1:
        store.index_copy_(2, target[0], store.index_select(2, source[0]))
    else:
        rows = torch.arange(len(store), device=store.device)[:, None]
        store[rows, :, target] = store[rows, :, source]
