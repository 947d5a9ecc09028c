import pytest
from test_choice import latency, recording

from medusa.calibration.figures import KINDS, Point, draw_trees, replayed, trees
from medusa.calibration.search import replayed_rate

RECORDED = recording(texts=10)


def test_trees_of_all_kinds_have_at_most_the_maximum_size():
    found = list(trees(RECORDED, 24, dense=20))
    assert {kind for kind, _ in found} == set(KINDS)
    assert all(1 < len(tree) <= 24 for _, tree in found)
    assert sum(kind == "dense" for kind, _ in found) == 20


def test_rates_are_replayed_and_speedups_predicted_from_the_latencies():
    for point in replayed(RECORDED, latency(0.1), trees(RECORDED, 12, dense=5)):
        assert point.acceleration_rate == replayed_rate(RECORDED, point.tree)
        overhead = 1 + 0.1 * (len(point.tree) - 1)
        assert point.speedup == pytest.approx(point.acceleration_rate / overhead)


def test_both_panels_show_every_point():
    pytest.importorskip("matplotlib")
    points = replayed(RECORDED, latency(0.1), trees(RECORDED, 12, dense=5))
    points.append(Point("joint", points[-1].tree, 2.0, 1.5, decoded=True))
    figure = draw_trees(points, "a machine")
    for axes in figure.axes:
        assert sum(
            len(line.get_xdata()) for line in axes.lines if line.get_marker() != "None"
        ) == len(points)
