"""The tree with the largest expected accepted length (paper, section 2.3.3 and appendix C).

A step is expected to deliver 1 + the sum over nodes of the probability that the node is accepted. A
node is never likelier than its parent, so the most probable paths make a tree, and no tree of as
many nodes is expected to deliver more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.tree import CandidateTree, Path
from .recording import Recording


def joint_tree(recording: Recording, nodes: int) -> CandidateTree:
    """The best tree of `nodes` nodes by the recorded probabilities of whole paths."""
    credit = recording.credit.double()
    reached: dict[Path, Tensor] = {(): torch.ones(len(credit), dtype=credit.dtype)}

    def children(path: Path) -> list[float]:
        depth = len(path)
        if path:
            reached[path] = reached[path[:-1]] * credit[:, depth - 1, path[-1]]
        if depth == recording.num_heads:
            return []
        means: list[float] = (reached[path] @ credit[:, depth] / max(1, len(credit))).tolist()
        return means

    return CandidateTree.most_probable(children, nodes)


def likelihoods(recording: Recording, tree: CandidateTree) -> list[float]:
    """[N] the share of positions at which each node is accepted."""
    return [float(credit.double().mean()) for credit in _reached(recording, tree)]


def nested(tree: CandidateTree, likelihoods: list[float]) -> list[tuple[CandidateTree, float]]:
    """The best tree of 1, 2, ... nodes within a tree, each with the tokens a step of it is expected
    to give.
    """
    order = sorted(range(len(tree)), key=lambda node: -likelihoods[node])
    kept, rate, trees = [], 0.0, []
    for node in order:
        kept.append(tree.paths[node])
        rate += likelihoods[node]
        trees.append((CandidateTree(kept), rate))
    return trees


def marginal_tree(recording: Recording, nodes: int) -> CandidateTree:
    """The best tree of `nodes` nodes if heads were right independently of each other: the
    paper's.
    """
    return CandidateTree.from_accuracies(recording.accuracies(), nodes)


def accepted_length(recording: Recording, tree: CandidateTree) -> Tensor:
    """[M] how many candidates of the tree are expected to be accepted at each position."""
    return torch.stack(_reached(recording, tree)).sum(0) - 1


def _reached(recording: Recording, tree: CandidateTree) -> list[Tensor]:
    """[N][M] the probability that each node is accepted at each position."""
    reached: list[Tensor] = [torch.ones(len(recording.credit))]
    parents = tree.parent.tolist()
    for node, path in enumerate(tree.paths):
        if node:
            reached.append(reached[parents[node]] * recording.credit[:, len(path) - 1, path[-1]])
    return reached


def expected_rate(recording: Recording, tree: CandidateTree) -> float:
    """The predicted acceleration rate: 1 + the sum over nodes of their probabilities."""
    return 1 + float(accepted_length(recording, tree).mean())


def replay(recording: Recording, tree: CandidateTree) -> tuple[list[int], list[int]]:
    """Tokens and steps of every recorded text as greedy decoding with the tree has them; nothing is
    decoded again.
    """
    lengths = accepted_length(recording, tree).round().long().tolist()
    steps, begin = [], 0
    for count in recording.lengths:
        place = taken = 0
        while place < count:
            place += lengths[begin + place] + 1
            taken += 1
        steps.append(taken)
        begin += count
    return list(recording.lengths), steps


def replayed_rate(recording: Recording, tree: CandidateTree) -> float:
    """The acceleration rate that greedy decoding of the recorded texts has."""
    tokens, steps = replay(recording, tree)
    return sum(tokens) / max(1, sum(steps))


def predicted_rate(recording: Recording, tree: CandidateTree) -> float:
    """What decoding more of the same will have: replayed where drafts are right or wrong, else
    expected.

    The expected length is that of a step from any position. Steps begin where others ended, and a
    text's last is cut.
    """
    return (replayed_rate if recording.certain else expected_rate)(recording, tree)


def dense_trees(num_heads: int, nodes: int, widest: int) -> Iterator[CandidateTree]:
    """Every Cartesian tree (section 2.1.2) of 2 to `nodes` nodes, no wider than `widest` at any
    depth.
    """

    def grow(widths: tuple[int, ...], leaves: int, total: int) -> Iterator[tuple[int, ...]]:
        if widths:
            yield widths
        if len(widths) < num_heads:
            for width in range(1, min(widest, (nodes - total) // leaves) + 1):
                yield from grow((*widths, width), leaves * width, total + leaves * width)

    for widths in grow((), 1, 1):
        yield CandidateTree.dense(widths)
