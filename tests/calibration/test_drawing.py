import pytest

from medusa import CandidateTree
from medusa.calibration.drawing import draw_tree, places, save
from medusa.core.tree import PUBLISHED_ACCURACIES

TREE = CandidateTree.default(4, 20)
FREQUENCIES = TREE.probabilities(PUBLISHED_ACCURACIES)


def test_likely_children_are_left_and_nodes_of_a_depth_do_not_overlap():
    at = places(TREE, FREQUENCIES)
    for children in TREE.children:
        ordered = sorted(children, key=lambda child: at[child])
        assert [FREQUENCIES[child] for child in ordered] == sorted(
            (FREQUENCIES[c] for c in children), reverse=True
        )
    spots = list(zip(at, TREE.depth.tolist(), strict=True))
    assert len(set(spots)) == len(TREE)
    assert at[0] == 0


@pytest.mark.parametrize("suffix", ["png", "svg"])
@pytest.mark.parametrize("tree", [TREE, CandidateTree(), CandidateTree.dense([4, 4])])
def test_trees_are_drawn(tmp_path, tree, suffix):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"tree.{suffix}"
    save(draw_tree(tree, tree.probabilities(PUBLISHED_ACCURACIES)), file)
    assert file.stat().st_size > 2000
