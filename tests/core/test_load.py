"""Tests of the adaptive tree under load: simulated steps of machines with different costs."""

import random

import pytest

from medusa import CandidateTree
from medusa.core.schedule import (
    UNCALIBRATED,
    AdaptiveTree,
    Calibration,
    History,
    size_class,
)

TREE = CandidateTree.default(3, 16)
ROWS = [1, 4, 16, 64]


def milliseconds(nodes, rows, node):
    """A step reads all weights (10 ms) and computes each node of each row (`node` ms)."""
    return 10 + 0.05 * rows + node * rows * nodes


def calibration_of(node):
    latency = {nodes: milliseconds(nodes, 1, node) for nodes in (1, 2, 4, 8, 16)}
    return Calibration(UNCALIBRATED.accuracies, latency, {"device": "a machine"})


def reached(tree, accuracy, rng):
    """Return the last accepted node: each of its ancestors was accepted with this probability."""
    node = 0
    while (children := tree.children[node]) and rng.random() < accuracy:
        node = children[0]
    return node


def play(schedule, loads, node, accuracy, seed=0):
    """Run a step for each number of rows; return nodes, tokens and seconds of each."""
    rng, played = random.Random(seed), []
    for rows in loads:
        tree = schedule.tree()
        nodes = [reached(tree, accuracy, rng) for _ in range(rows)]
        seconds = milliseconds(len(tree), rows, node) / 1000 * rng.uniform(0.98, 1.02)
        schedule.observe(nodes, seconds)
        played.append((len(tree), sum(1 + len(tree.paths[each]) for each in nodes), seconds))
    return played


def speed(played):
    return sum(tokens for _, tokens, _ in played) / sum(seconds for *_, seconds in played)


def best_speed(node, accuracy, rows):
    """Return the tokens a second of the best tree of the ladder, always used."""
    per_row = [
        (len(rung.tree), sum(accuracy**depth for depth in range(1 + rung.tree.max_depth)))
        for rung in AdaptiveTree(TREE, calibration_of(node)).ladder
    ]
    return max(1000 * rows * given / milliseconds(size, rows, node) for size, given in per_row)


CALIBRATIONS = {
    "own": calibration_of,
    "too cheap": lambda node: calibration_of(0.0),
    "too dear": lambda node: calibration_of(1.5),
    "none": lambda node: UNCALIBRATED,
}


@pytest.mark.parametrize("known", CALIBRATIONS)
@pytest.mark.parametrize("accuracy", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("node", [0.005, 0.1, 1.0])
def test_decoding_is_not_slower_than_plain_at_any_load(known, accuracy, node):
    for rows in ROWS:
        schedule = AdaptiveTree(TREE, CALIBRATIONS[known](node), History())
        plain = 1000 * rows / milliseconds(1, rows, node)
        played = play(schedule, [rows] * 1500, node, accuracy)
        # a calibration that is wrong by a factor is followed for the first 128 steps of one row
        assert speed(played) > (0.85 if known == "too cheap" else 0.93) * plain, f"{rows} rows"
        assert speed(played[500:]) > 0.97 * plain, f"{rows} rows"
        if known == "own":
            assert speed(played[500:]) > 0.9 * best_speed(node, accuracy, rows), f"{rows} rows"


@pytest.mark.parametrize("known", CALIBRATIONS)
def test_the_choice_follows_a_load_that_jumps(known):
    """A tree of 16 nodes pays for one row, and takes six times as long as plain for 32."""
    schedule = AdaptiveTree(TREE, CALIBRATIONS[known](0.2), History())
    one = play(schedule, [1] * 300, 0.2, 0.8)
    assert min(size for size, *_ in one[-20:]) > 1
    for seed in range(3):
        many = play(schedule, [32] * 400, 0.2, 0.8, seed)
        assert sum(size > 4 for size, *_ in many[:20]) <= 6, "within a few steps"
        assert speed(many[100:]) > 0.97 * 32 * 1000 / milliseconds(1, 32, 0.2)
        again = play(schedule, [1] * 300, 0.2, 0.8, seed)
        assert again[0][0] <= 4, "the first step does not know yet"
        assert sum(size == 1 for size, *_ in again[1:50]) <= 3, "but the second does"
        assert speed(again[1:]) > 0.85 * speed(one[-200:])


def test_without_a_calibration_a_tree_is_tried_with_many_rows():
    """Such as on a GPU, where nodes cost little however many rows there are."""
    schedule = AdaptiveTree(TREE, history=History())
    sizes = [size for size, *_ in play(schedule, [32] * 50, 0.001, 0.8)]
    assert sizes.count(1) == 2, "plain decoding is timed"
    assert set(sizes) == {1, 16}


def test_costs_of_one_number_of_rows_are_not_those_of_another():
    history = History()
    schedule = AdaptiveTree(TREE, calibration_of(0.2), history)
    play(schedule, [1] * 200, 0.2, 0.8)
    assert history.overhead(16, 1) is not None
    assert history.overhead(16, 32) is None
    play(schedule, [32], 0.2, 0.8)
    costs = [schedule._cost(number) for number in range(len(schedule.ladder))]
    assert costs[0] > 4 * costs[-1], "16 nodes of 32 rows are 512"
    assert costs == sorted(costs, reverse=True)


def test_the_cost_of_a_tree_grows_with_the_rows():
    calibration = calibration_of(0.2)
    assert calibration.cost(16) == pytest.approx(13.25 / 10.25)
    costs = [calibration.cost(16, rows) for rows in ROWS]
    assert costs == sorted(costs)
    assert costs[-1] == pytest.approx((10.05 + 0.2 * 1024) / (10.05 + 0.2 * 64))
    falling = Calibration(UNCALIBRATED.accuracies, {1: 10.0, 2: 11.0, 4: 10.5})
    assert falling.cost(4, 64) >= 1, "extrapolated noise"


def test_rows_of_a_class_are_up_to_the_same_power_of_two():
    assert [size_class(rows) for rows in (1, 2, 3, 4, 5, 31, 32, 33)] == [1, 2, 4, 4, 8, 32, 32, 64]
