"""The tree with the largest expected accepted length (paper, section 2.3.3 and appendix C).

The expected number of tokens of a step is 1 plus the sum over candidate nodes of the probability
that the node is accepted. A node is never more probable than its parent, so the most probable paths
form a tree, and no other tree of the same size has a larger expected number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.tree import CandidateTree, Path
from .recording import Recording


def joint_tree(recording: Recording, nodes: int) -> CandidateTree:
    """Return the best tree of `nodes` nodes by the recorded joint probabilities of whole paths."""
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
    """Return for each node [N] the share of positions at which it is accepted."""
    return [float(credit.double().mean()) for credit in _reached(recording, tree)]


def nested(tree: CandidateTree, likelihoods: list[float]) -> list[tuple[CandidateTree, float]]:
    """Return the best trees of 1, 2, ... nodes within a tree, each with its expected tokens a step.

    Args:
        likelihoods: [N] probability that each node of `tree` is accepted.
    """
    order = sorted(range(len(tree)), key=lambda node: -likelihoods[node])
    kept, rate, trees = [], 0.0, []
    for node in order:
        kept.append(tree.paths[node])
        rate += likelihoods[node]
        trees.append((CandidateTree(kept), rate))
    return trees


def marginal_tree(recording: Recording, nodes: int) -> CandidateTree:
    """Return the paper's tree of `nodes` nodes, which is best if heads are right independently."""
    return CandidateTree.from_accuracies(recording.accuracies(), nodes)


def accepted_length(recording: Recording, tree: CandidateTree) -> Tensor:
    """Return the expected number of accepted candidates at each position [M]."""
    return torch.stack(_reached(recording, tree)).sum(0) - 1


def _reached(recording: Recording, tree: CandidateTree) -> list[Tensor]:
    """Return the probability [N][M] that each node is accepted at each position."""
    reached: list[Tensor] = [torch.ones(len(recording.credit))]
    parents = tree.parent.tolist()
    for node, path in enumerate(tree.paths):
        if node:
            reached.append(reached[parents[node]] * recording.credit[:, len(path) - 1, path[-1]])
    return reached


def expected_rate(recording: Recording, tree: CandidateTree) -> float:
    """Return the expected acceleration rate of a step that starts at a random position.

    It is 1 plus the sum of the nodes' probabilities.
    """
    return 1 + float(accepted_length(recording, tree).mean())


def replay(recording: Recording, tree: CandidateTree) -> tuple[list[int], list[int]]:
    """Return tokens and steps of every recorded text, as greedy decoding with the tree takes them.

    The steps are replayed on the recorded credits; nothing is decoded again.
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
    """Return the acceleration rate of greedy decoding with the tree on the recorded texts."""
    tokens, steps = replay(recording, tree)
    return sum(tokens) / max(1, sum(steps))


def predicted_rate(recording: Recording, tree: CandidateTree) -> float:
    """Return the acceleration rate predicted for further texts of the same kind.

    It is the replayed rate for greedy decoding, and the expected rate for sampling. The replayed
    rate is more precise: real steps do not start at random positions but where the step before
    ended, and the end of a text cuts its last step.
    """
    return (replayed_rate if recording.certain else expected_rate)(recording, tree)


def dense_trees(num_heads: int, nodes: int, widest: int) -> Iterator[CandidateTree]:
    """Yield every Cartesian product tree (section 2.1.2) of 2 to `nodes` nodes.

    Args:
        widest: maximum number of children of a node.
    """

    def grow(widths: tuple[int, ...], leaves: int, total: int) -> Iterator[tuple[int, ...]]:
        if widths:
            yield widths
        if len(widths) < num_heads:
            for width in range(1, min(widest, (nodes - total) // leaves) + 1):
                yield from grow((*widths, width), leaves * width, total + leaves * width)

    for widths in grow((), 1, 1):
        yield CandidateTree.dense(widths)
