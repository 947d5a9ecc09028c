"""Tests of the replay that chooses nodes by the probability that they survive."""

import torch

from benchmarks.survival import Answer, by_survival, fixed, replay, step_ms
from medusa.core.schedule import Calibration
from medusa.core.tree import CandidateTree

TREE = CandidateTree([(0,), (0, 0), (1,)])
DEPTH = torch.as_tensor(TREE.depth)
CALIBRATION = Calibration([[0.5, 0.7], [0.4, 0.6]], {1: 10.0, 2: 12.0, 4: 14.0, 260: 270.0})


def node(path):
    return list(TREE.paths).index(path)


def steps(*paths):
    """Return an answer in whose steps these paths survive, as the heads say."""
    found = torch.zeros(len(paths), len(TREE))
    for step, path in enumerate(paths):
        for depth in range(len(path) + 1):
            found[step, node(path[:depth])] = 1
    return Answer(found, found.bool())


def test_a_plain_step_of_several_rows_does_not_draft():
    assert step_ms(CALIBRATION, 1, 1) == 10
    assert step_ms(CALIBRATION, 4, 4) == 14 - 2
    assert step_ms(CALIBRATION, 1, 4) == 14


def test_accepted_nodes_give_tokens():
    tree = fixed(CALIBRATION, 1, TREE, 4)
    assert replay([steps((), (), (), ())], 1, DEPTH, tree) == (1, 14)
    text = steps((0, 0), (), (), ())  # the first of two steps gives three of the four tokens
    assert replay([text], 1, DEPTH, tree) == (2, 14)
    assert replay([text, text], 2, DEPTH, fixed(CALIBRATION, 2, TREE, 4)) == (4, 18)


def test_rows_get_the_nodes_that_survive():
    choose = by_survival(CALIBRATION, 2, 1.0)
    sure, hopeless = [0.0] * len(TREE), [0.0] * len(TREE)
    sure[node(())] = hopeless[node(())] = 1.0
    sure[node((0,))] = sure[node((0, 0))] = 0.9
    mask, duration = choose(torch.tensor([sure, hopeless]))
    assert {TREE.paths[place] for place in mask[0].nonzero()[:, 0]} == {(), (0,), (0, 0)}
    assert [TREE.paths[place] for place in mask[1].nonzero()[:, 0]] == [()]
    assert duration == step_ms(CALIBRATION, 2, 4)
