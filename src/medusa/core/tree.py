"""Candidate trees: the continuations that one forward verifies (section 2.1.2 and appendix C).

A tree is a set of rank paths. The path (2, 0) is head 0's third best token followed by head 1's
best. Node 0, the root, is the base model's own token; it belongs to every candidate and is counted
in every node count.
"""

from __future__ import annotations

import heapq
import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from . import published_trees

Path = tuple[int, ...]

PUBLISHED_ACCURACIES = (
    (0.560, 0.672, 0.727, 0.760, 0.780),
    (0.316, 0.424, 0.485, 0.528, 0.562),
    (0.201, 0.288, 0.348, 0.383, 0.417),
    (0.147, 0.225, 0.274, 0.311, 0.340),
    (0.118, 0.187, 0.235, 0.272, 0.300),
)
"""Top-1 to top-5 accuracies of the published Vicuna-7B heads (v1.3), a head a row.

These are training accuracies: the last values that the authors logged during training. On text that
the heads were not trained on, they are right less often.
"""


@dataclass(frozen=True)
class CandidateTree:
    """An immutable tree of N nodes, given by its rank paths (the root's empty path is implied).

    Nodes are ordered depth first, siblings by rank. So nodes 0, 1, 2, ... are the candidate made of
    every head's best token. It is the one most often accepted, and the cache keeps its states
    without moving them.

    Raises:
        ValueError: a path is repeated, a rank is no whole number or negative, or a path's parent is
            missing.
    """

    paths: tuple[Path, ...]

    def __init__(self, paths: Iterable[Sequence[int]] = ()):
        given = [tuple(_rank(rank) for rank in path) for path in paths]
        given = [path for path in given if path]
        known = set(given)
        if len(known) < len(given):
            twice = sorted(path for path, times in Counter(given).items() if times > 1)
            raise ValueError(f"paths must be distinct; repeated: {twice}")
        for path in given:
            if min(path) < 0:
                raise ValueError(f"ranks start at 0, got path {path}")
            if len(path) > 1 and path[:-1] not in known:
                raise ValueError(f"path {path} needs its parent {path[:-1]} in the tree")
        object.__setattr__(self, "paths", ((), *sorted(known)))

    @classmethod
    def chain(cls, depth: int) -> CandidateTree:
        """Return the tree of one candidate: the best token of each of `depth` heads."""
        return cls((0,) * (k + 1) for k in range(depth))

    @classmethod
    def dense(cls, widths: Sequence[int]) -> CandidateTree:
        """Return the Cartesian product of the top s_k tokens of each head (section 2.1.2).

        It has 1 + sum_k prod_{i<=k} s_i nodes.

        Args:
            widths: s_1..s_K, all at least 1.
        """
        if any(width < 1 for width in widths):
            raise ValueError(f"widths must be at least 1, got {list(widths)}")
        return cls(
            path
            for depth in range(1, len(widths) + 1)
            for path in itertools.product(*(range(width) for width in widths[:depth]))
        )

    @classmethod
    def from_accuracies(cls, accuracies: Sequence[Sequence[float]], nodes: int) -> CandidateTree:
        """Return the sparse tree with the largest expected accepted length (appendix C).

        The tree grows from the root, each time by the most probable node. Heads are taken to be
        independent: the probability of a path is the product of its ranks' marginal accuracies.

        Args:
            accuracies: for each head, the share of positions where the target is within its top 1,
                top 2, ... (cumulative, not decreasing).
            nodes: N, the root included.
        """
        marginals = _marginals(accuracies)

        def children(path: Path) -> list[float]:
            parent = math.prod(marginals[depth][rank] for depth, rank in enumerate(path))
            return (
                [parent * share for share in marginals[len(path)]]
                if len(path) < len(marginals)
                else []
            )

        return cls.most_probable(children, nodes)

    @classmethod
    def most_probable(
        cls, children: Callable[[Path], Sequence[float]], nodes: int
    ) -> CandidateTree:
        """Return the tree of the most probable paths; paths of probability 0 are left out.

        A path is never more probable than its parent, so no other tree of as many nodes has a
        larger sum of probabilities.

        Args:
            children: returns the probabilities of a path's children by rank; called once for each
                path in the tree.
            nodes: maximum N, the root included.
        """
        if nodes < 1:
            raise ValueError(f"a tree has at least its root: nodes must be >= 1, got {nodes}")
        chosen: list[Path] = []
        open_: list[tuple[float, int, Path]] = []
        path: Path = ()
        while len(chosen) < nodes - 1:
            for rank, probability in enumerate(children(path)):
                if probability > 0:
                    heapq.heappush(open_, (-probability, len(path), (*path, rank)))
            if not open_:
                break
            path = heapq.heappop(open_)[-1]
            chosen.append(path)
        return cls(chosen)

    @classmethod
    def named(cls, name: str) -> CandidateTree:
        """Return a tree that the authors of the paper published, such as "mc_sim_7b_63".

        Raises:
            ValueError: no tree has this name; lists those that exist.
        """
        return cls(published_trees.paths(name))

    @classmethod
    def default(cls, num_heads: int, nodes: int = 16) -> CandidateTree:
        """Return the tree for uncalibrated heads, from the accuracies of the published 7B heads."""
        return cls.from_accuracies(PUBLISHED_ACCURACIES[:num_heads], nodes)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def max_depth(self) -> int:
        """D: tokens of the longest candidate, the root not counted; as many heads are needed."""
        return max(map(len, self.paths))

    @cached_property
    def max_rank(self) -> int:
        """R: the number of top tokens that the tree takes from a head."""
        return 1 + max((max(path) for path in self.paths[1:]), default=-1)

    @cached_property
    def parent(self) -> Tensor:
        """[N] index of each node's parent; the root is its own parent."""
        index = {path: node for node, path in enumerate(self.paths)}
        return torch.tensor([index[path[:-1]] for path in self.paths])

    @cached_property
    def depth(self) -> Tensor:
        """[N] distance from the root."""
        return torch.tensor([len(path) for path in self.paths])

    @cached_property
    def rank(self) -> Tensor:
        """[N] each node's rank among its head's tokens; 0 for the root."""
        return torch.tensor([path[-1] if path else 0 for path in self.paths])

    @cached_property
    def order(self) -> Tensor:
        """[N] place of each node among its siblings; equal to its rank if no rank is skipped."""
        order = torch.zeros(len(self), dtype=torch.long)
        for children in self.children:
            order[list(children)] = torch.arange(len(children))
        return order

    @cached_property
    def mask(self) -> Tensor:
        """[N, N] bool: which nodes (columns) each node (row) attends to: ancestors and itself."""
        mask = torch.eye(len(self), dtype=torch.bool)
        for node in range(1, len(self)):
            mask[node] |= mask[self.parent[node]]
        return mask

    @cached_property
    def ancestors(self) -> Tensor:
        """[N, D + 1] nodes from the root down to each node, padded with the node itself."""
        index = {path: node for node, path in enumerate(self.paths)}
        return torch.tensor(
            [[index[path[:depth]] for depth in range(self.max_depth + 1)] for path in self.paths]
        )

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """The children of each node, in order of rank."""
        children: list[list[int]] = [[] for _ in self.paths]
        for child, parent in enumerate(self.parent.tolist()[1:], start=1):
            children[parent].append(child)
        return tuple(map(tuple, children))

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """For each depth, the largest number of siblings at that depth."""
        widths = [0] * self.max_depth
        for path, children in zip(self.paths, self.children, strict=True):
            if children:
                widths[len(path)] = max(widths[len(path)], len(children))
        return tuple(widths)

    @cached_property
    def child_table(self) -> Tensor:
        """[N, R] children of each node in order of rank, padded with 0 (the root is no child)."""
        table = torch.zeros(len(self), max(map(len, self.children)), dtype=torch.long)
        for node, children in enumerate(self.children):
            table[node, : len(children)] = torch.tensor(children, dtype=torch.long)
        return table

    def probabilities(self, accuracies: Sequence[Sequence[float]]) -> list[float]:
        """Return the probability [N] that each node is accepted, if heads are independent.

        It is 0 for ranks and heads without an accuracy.
        """
        marginals = _marginals(accuracies)
        shares = {
            (k, rank): share for k, row in enumerate(marginals) for rank, share in enumerate(row)
        }
        return [
            math.prod(shares.get(place, 0.0) for place in enumerate(path)) for path in self.paths
        ]

    def expected(self, accuracies: Sequence[Sequence[float]]) -> float:
        """Return the expected tokens of a step: the sum of all nodes' probabilities."""
        return sum(self.probabilities(accuracies))

    def most_likely(self, accuracies: Sequence[Sequence[float]], nodes: int) -> CandidateTree:
        """Return the tree of this tree's `nodes` most probable nodes."""
        likely = self.probabilities(accuracies)
        kept = sorted(range(len(self)), key=lambda node: -likely[node])[:nodes]
        return CandidateTree(self.paths[node] for node in kept)

    def check_heads(self, num_heads: int, vocab_size: int) -> None:
        """Check that the heads can fill the tree.

        Raises:
            ValueError: the tree is deeper than there are heads, or has ranks beyond their
                vocabulary.
        """
        if self.max_depth > num_heads:
            raise ValueError(
                f"the tree is {self.max_depth} deep but there are {num_heads} heads: "
                f"use a tree of depth <= {num_heads}, CandidateTree.default({num_heads}) say"
            )
        if self.max_rank > vocab_size:
            raise ValueError(
                f"the tree has rank {self.max_rank - 1} but the vocabulary has {vocab_size} "
                f"tokens: use a tree with ranks from 0 to {vocab_size - 1}"
            )


def _rank(rank: Any) -> int:
    """Return a rank as an int; fractions, texts and booleans are refused, not rounded."""
    try:
        if isinstance(rank, bool):
            raise TypeError
        return operator.index(rank)
    except TypeError:
        raise ValueError(f"ranks are whole numbers, got {rank!r}") from None


def _marginals(accuracies: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the probability of each rank of each head, from cumulative accuracies.

    Raises:
        ValueError: accuracies decrease, or are larger than 1.
    """
    marginals = []
    for head, row in enumerate(accuracies):
        steps = [after - before for before, after in zip((0.0, *row), row, strict=False)]
        if min(steps, default=0.0) < 0 or sum(steps) > 1 + 1e-9:
            raise ValueError(
                f"head {head}: cumulative accuracies must rise and stay within 1, got {list(row)}"
            )
        marginals.append(steps)
    return marginals
