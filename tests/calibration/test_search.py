import itertools

import pytest
import torch

from medusa import CandidateTree
from medusa.calibration.recording import Recording
from medusa.calibration.search import (
    accepted_length,
    dense_trees,
    expected_rate,
    joint_tree,
    marginal_tree,
    replayed_rate,
)


def recording(heads=2, ranks=3, lengths=(7, 1, 12), seed=0, soft=False):
    """Credits of made-up positions; the further ahead, the less often right, and heads err
    together.
    """
    generator = torch.Generator().manual_seed(seed)
    positions = sum(lengths)
    if soft:
        credit = torch.rand(positions, heads, ranks, generator=generator)
        credit /= credit.sum(-1, keepdim=True) * 1.5
    else:
        easy = torch.rand(positions, 1, generator=generator)
        rank = ((torch.rand(positions, heads, generator=generator) + 1 - easy) * ranks).long()
        credit = torch.nn.functional.one_hot(rank.clamp_max(ranks), ranks + 1)[..., :ranks].float()
    known = torch.ones(positions, heads, dtype=torch.bool)
    return Recording(credit, known, lengths)


def all_trees(heads, ranks, nodes):
    """Return every tree of `nodes` nodes."""
    paths = [
        path
        for depth in range(1, heads + 1)
        for path in itertools.product(range(ranks), repeat=depth)
    ]
    for chosen in itertools.combinations(paths, nodes - 1):
        if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
            yield CandidateTree(chosen)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("seed", range(3))
def test_the_tree_has_the_largest_expected_length_of_its_size(nodes, soft, seed):
    recorded = recording(seed=seed, soft=soft)
    best = max(expected_rate(recorded, tree) for tree in all_trees(2, 3, nodes))
    assert expected_rate(recorded, joint_tree(recorded, nodes)) == pytest.approx(best)
    assert len(joint_tree(recorded, nodes)) <= nodes


@pytest.mark.parametrize("nodes", [2, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_marginals_are_optimal_where_heads_err_independently(nodes, seed):
    """The product over heads of every position's credits is then the product of the means."""
    single = recording(seed=seed, soft=True, lengths=(1,))
    best = max(expected_rate(single, tree) for tree in all_trees(2, 3, nodes))
    assert expected_rate(single, marginal_tree(single, nodes)) == pytest.approx(best)


def test_expected_length_counts_whole_paths():
    recorded = recording(seed=4)
    tree = CandidateTree([(0,), (1,), (0, 2), (1, 0)])
    for position, length in enumerate(accepted_length(recorded, tree).tolist()):
        right = [
            path
            for path in tree.paths
            if all(recorded.credit[position, depth, rank] == 1 for depth, rank in enumerate(path))
        ]
        assert length == max(map(len, right))


def test_a_replay_counts_steps_and_tokens_of_whole_texts():
    credit = torch.zeros(6, 2, 2)
    credit[0, 0, 0] = credit[0, 1, 1] = credit[3, 0, 1] = credit[4, 0, 0] = 1
    recorded = Recording(credit, torch.ones(6, 2, dtype=torch.bool), (4, 2))
    tree = CandidateTree([(0,), (0, 1)])
    # text 1: three tokens from position 0, then one from 3; text 2: two tokens from position 4
    assert replayed_rate(recorded, tree) == 6 / 3
    assert replayed_rate(recorded, CandidateTree()) == 1
    assert replayed_rate(recorded, CandidateTree([(0,), (1,), (0, 1)])) == 6 / 3


def test_all_dense_trees_are_listed():
    trees = {tree.paths for tree in dense_trees(3, 9, 4)}
    expected = {
        CandidateTree.dense(widths).paths
        for depth in (1, 2, 3)
        for widths in itertools.product(range(1, 5), repeat=depth)
        if len(CandidateTree.dense(widths)) <= 9
    }
    assert trees == expected


def test_accuracies_are_cumulative_over_known_positions():
    credit = torch.zeros(4, 1, 3)
    credit[0, 0, 0] = credit[1, 0, 2] = 1
    known = torch.tensor([[True], [True], [True], [False]])
    rows = Recording(credit, known, (4,)).accuracies()
    assert rows[0] == pytest.approx([1 / 3, 1 / 3, 2 / 3])
