import pytest
import torch

from medusa import CandidateTree
from medusa.calibration.choice import (
    choose,
    overhead_interval,
    predictions,
    rate_interval,
    resampled,
    share_interval,
)
from medusa.calibration.latency import Latency
from medusa.calibration.recording import Recording
from medusa.calibration.search import expected_rate, joint_tree, replayed_rate

SIZES = (1, 2, 4, 8, 16)


def recording(texts=40, positions=25, heads=3, ranks=4, right=0.7):
    generator = torch.Generator().manual_seed(0)
    rank = torch.multinomial(
        torch.tensor([right, *[(1 - right) / ranks] * ranks]),
        texts * positions * heads,
        True,
        generator=generator,
    ).view(-1, heads)
    credit = torch.nn.functional.one_hot(rank, ranks + 1)[..., :ranks].float()
    return Recording(credit, torch.ones(len(credit), heads, dtype=torch.bool), (positions,) * texts)


def latency(cost):
    return Latency(
        {100: [{size: 0.01 * (1 + cost * (size - 1)) for size in SIZES} for _ in range(5)]}
    )


@pytest.mark.parametrize("nodes", [1, 2, 5, 11, 16])
def test_predictions_are_the_best_trees_of_each_size(nodes):
    recorded = recording()
    each = predictions(recorded, latency(0.1), 16)[nodes - 1]
    assert len(each.tree) == nodes
    assert each.acceleration_rate == pytest.approx(
        replayed_rate(recorded, joint_tree(recorded, nodes))
    )
    assert each.overhead == pytest.approx(1 + 0.1 * (nodes - 1))


def test_rates_of_sampled_recordings_are_expected_lengths():
    certain = recording()
    likely = Recording(0.9 * certain.credit, certain.known, certain.lengths)
    each = predictions(likely, latency(0.1), 8)[7]
    rate = expected_rate(likely, each.tree)
    assert each.acceleration_rate == pytest.approx(rate)
    low, high = rate_interval(likely, each.tree)
    assert low < rate < high


def test_fewer_nodes_are_chosen_if_nodes_cost_more():
    recorded = recording()
    sizes = [
        len(choose(predictions(recorded, latency(cost), 16)).tree)
        for cost in (0.0, 0.02, 0.1, 0.3, 2.0)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 16
    assert sizes[-1] == 1, "nothing pays: plain decoding"


def test_the_choice_is_the_best_of_all():
    candidates = predictions(recording(), latency(0.05), 16)
    assert choose(candidates).speedup == max(each.speedup for each in candidates)


def test_intervals_contain_the_value_and_shrink_with_data():
    few, many = recording(texts=10), recording(texts=400)
    tree = CandidateTree.dense([2, 2, 1])
    for recorded in (few, many):
        low, high = rate_interval(recorded, tree)
        assert low < replayed_rate(recorded, tree) < high
    width = [high - low for low, high in (rate_interval(each, tree) for each in (few, many))]
    assert width[1] < width[0] / 3
    assert overhead_interval(latency(0.1), 8) == pytest.approx((1.7, 1.7))
    assert overhead_interval(latency(0.1), 6) == pytest.approx((1.5, 1.5)), (
        "between two sizes that were measured"
    )
    assert resampled([2.0, 2.0], [1.0, 1.0]) == (2.0, 2.0)


def test_wilsons_interval():
    assert share_interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)
    low, high = share_interval(0.0, 50)
    assert low == pytest.approx(0, abs=1e-9)
    assert 0.05 < high < 0.1
    assert share_interval(0.3, 0) == (0, 1)
