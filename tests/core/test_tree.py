import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medusa import CandidateTree
from medusa.core.tree import PUBLISHED_ACCURACIES


@st.composite
def trees(draw):
    paths = {()}
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(sorted(paths)))
        if len(parent) < 4:
            paths.add((*parent, draw(st.integers(0, 3))))
    return CandidateTree(sorted(paths))


def test_a_small_tree_as_matrices():
    tree = CandidateTree([(1,), (0,), (0, 0), (0, 2)])
    assert tree.paths == ((), (0,), (0, 0), (0, 2), (1,))
    assert tree.parent.tolist() == [0, 0, 1, 1, 0]
    assert tree.depth.tolist() == [0, 1, 2, 2, 1]
    assert tree.rank.tolist() == [0, 0, 0, 2, 1]
    assert tree.order.tolist() == [0, 0, 0, 1, 1]
    assert tree.mask.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    assert tree.ancestors.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2], [0, 1, 3], [0, 4, 4]]
    assert tree.children == ((1, 4), (2, 3), (), (), ())
    assert (tree.max_depth, tree.max_rank, len(tree)) == (2, 3, 5)


def test_a_tree_of_only_the_root():
    tree = CandidateTree()
    assert len(tree) == 1
    assert (tree.max_depth, tree.max_rank) == (0, 0)
    assert tree.mask.tolist() == [[True]]


@pytest.mark.parametrize(
    ("widths", "nodes"), [([1], 2), ([2, 3], 1 + 2 + 6), ([4, 3, 2], 1 + 4 + 12 + 24)]
)
def test_dense_counts_the_sum_of_products(widths, nodes):
    assert len(CandidateTree.dense(widths)) == nodes


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([(0,), (0,)], r"repeated: \[\(0,\)\]"),
        ([(-1,)], "ranks start at 0"),
        ([(0, 0)], r"path \(0, 0\) needs its parent \(0,\)"),
    ],
)
def test_invalid_paths_are_refused(paths, words):
    with pytest.raises(ValueError, match=words):
        CandidateTree(paths)


def test_a_tree_deeper_than_the_heads_is_refused():
    with pytest.raises(ValueError, match="3 deep but there are 2 heads"):
        CandidateTree.chain(3).check_heads(2, 10)


@pytest.mark.parametrize("rank", [0.7, 1.0, True, "0", None])
def test_ranks_are_whole_numbers(rank):
    with pytest.raises(ValueError, match=f"ranks are whole numbers, got {rank!r}"):
        CandidateTree([(rank,)])


def test_a_rank_beyond_the_vocabulary_is_refused():
    CandidateTree([(9,)]).check_heads(1, 10)
    with pytest.raises(ValueError, match="rank 10 but the vocabulary has 10 tokens"):
        CandidateTree([(10,)]).check_heads(1, 10)


@given(trees())
def test_mask_and_ancestors_follow_the_parents(tree):
    for node in range(len(tree)):
        seen, up = {node}, node
        while up:
            up = int(tree.parent[up])
            seen.add(up)
        assert set(torch.nonzero(tree.mask[node]).flatten().tolist()) == seen
        assert set(tree.ancestors[node].tolist()) == seen
        assert int(tree.parent[node]) <= node


@given(st.integers(1, 40))
def test_the_default_tree_is_the_best_of_its_size(nodes):
    """Greedy growth equals taking the n likeliest of all paths, since children are never likelier
    than parents.
    """
    tree = CandidateTree.from_accuracies(PUBLISHED_ACCURACIES, nodes)
    gains = [[b - a for a, b in zip((0, *row), row, strict=False)] for row in PUBLISHED_ACCURACIES]

    def value(path):
        result = 1.0
        for depth, rank in enumerate(path):
            result *= gains[depth][rank]
        return result

    everything = [value(path) for path in CandidateTree.dense([5] * 4).paths]
    assert len(tree) == nodes
    chosen = sum(map(value, tree.paths))
    assert chosen >= sum(sorted(everything, reverse=True)[:nodes]) - 1e-9


@pytest.mark.parametrize("row", [[0.5, 0.4], [0.9, 1.2], [-0.1]])
def test_impossible_accuracies_are_refused(row):
    with pytest.raises(ValueError, match="head 0"):
        CandidateTree.from_accuracies([row], 4)


def test_a_large_tree_knows_its_children():
    tree = CandidateTree([(rank,) for rank in range(2000)] + [(rank, 0) for rank in range(2000)])
    assert tree.children[0] == tuple(range(1, 4001, 2))
    assert tree.children[1:] == tuple((node + 1,) if node % 2 else () for node in range(1, 4001))
    with pytest.raises(ValueError, match=r"repeated: \[\(7,\)\]"):
        CandidateTree([*tree.paths, (7,)])


PUBLISHED = {
    "mc_sim_7b_63": ([10, 28, 23, 2], "da6baaf9f76901e4"),
    "vicuna_7b_stage1": ([10, 32, 20, 1], "1cad748cf043a470"),
    "vicuna_7b_stage1_ablation": ([10, 21, 25, 7], "109c78bb52221b03"),
    "vicuna_7b_stage2": ([10, 23, 23, 7], "3428df23bcf74a8d"),
    "vicuna_13b_stage1": ([10, 29, 23, 1], "eb4c1cea8fea67c2"),
    "vicuna_13b_stage2": ([10, 19, 25, 9], "7a2c448ba1d3e2d1"),
    "vicuna_33b_stage1": ([10, 34, 19], "19b3a0a37286c27c"),
    "vicuna_33b_stage2": ([10, 24, 24, 5], "d8b8a8ffad2a9d58"),
    "zephyr_stage2": ([10, 27, 23, 3], "89f0f59ac3e0eaa0"),
}
"""Nodes of the published trees at each depth, and the first digits of a hash of their paths.

The hash is the SHA-256 of the paths in the authors' `medusa_choices.py`, sorted, as JSON.
"""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_tree_has_the_nodes_that_the_authors_published(name):
    tree, (nodes, digits) = CandidateTree.named(name), PUBLISHED[name]
    assert len(tree) == 64
    assert torch.bincount(tree.depth)[1:].tolist() == nodes
    paths = json.dumps([list(path) for path in sorted(tree.paths)[1:]])
    assert hashlib.sha256(paths.encode()).hexdigest()[:16] == digits


def test_some_paths_of_published_trees():
    default = CandidateTree.named("mc_sim_7b_63")
    assert {(9, 0), (1, 0, 1), (0, 0, 0, 1), (0, 7, 0)} < set(default.paths)
    assert (1, 7) not in default.paths
    assert (1, 0, 0, 0) in CandidateTree.named("vicuna_13b_stage2").paths


def test_an_unknown_tree_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"no published tree is named 'vicuna': .*mc_sim_7b_63, "):
        CandidateTree.named("vicuna")
