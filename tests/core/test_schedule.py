import itertools

import pytest
import torch
from models import ScriptedHeads, tiny, varied_prompt

from medusa import CandidateTree, MedusaModel
from medusa.core.schedule import (
    PROBE,
    RETIME,
    UNCALIBRATED,
    WAITS,
    WINDOW,
    AdaptiveTree,
    Calibration,
    History,
    interpolated,
)

TREE = CandidateTree.default(3, 16)
CURVE = {1: 10.0, 2: 10.2, 4: 10.4, 8: 10.8, 16: 11.6}
CALIBRATED = Calibration(UNCALIBRATED.accuracies, CURVE, {"device": "a machine"})


def play(schedule, steps, reach, cost=lambda nodes: CURVE[nodes] / 1000):
    """Run the schedule for some steps; return the tree sizes that it chose."""
    sizes = []
    for step in range(steps):
        tree = schedule.tree()
        sizes.append(len(tree))
        schedule.observe([reach(tree, step)], cost(len(tree)))
    return sizes


def never(tree, step):
    return 0


def always(tree, step):
    """Return a deep node; smaller trees contain only its ancestors."""
    half = set(TREE.most_likely(UNCALIBRATED.accuracies, 8).paths)
    return max(
        range(len(tree)), key=lambda node: (len(tree.paths[node]), tree.paths[node] not in half)
    )


def test_every_tree_of_the_ladder_contains_the_next_one():
    schedule = AdaptiveTree(TREE, CALIBRATED)
    trees = [rung.tree for rung in schedule.ladder]
    assert [len(tree) for tree in trees] == [16, 8, 4, 2, 1]
    for larger, smaller in itertools.pairwise(trees):
        assert set(smaller.paths) < set(larger.paths)

    assert [len(rung.tree) for rung in AdaptiveTree(TREE).ladder] == [16, 1], (
        "no node's cost is known"
    )
    assert [len(rung.tree) for rung in AdaptiveTree(CandidateTree(), CALIBRATED).ladder] == [1]


def test_a_step_updates_the_averages_of_smaller_trees():
    schedule = AdaptiveTree(TREE, CALIBRATED)
    before = [rung.tokens for rung in schedule.ladder]
    node = max(range(len(TREE)), key=lambda node: len(TREE.paths[node]))
    schedule.observe([node], 0.01)
    for rung, was in zip(schedule.ladder, before, strict=True):
        path = TREE.paths[node]
        given = 1 + max(
            depth for depth in range(len(path) + 1) if path[:depth] in set(rung.tree.paths)
        )
        assert rung.tokens == pytest.approx(was + (given - was) / WINDOW)
    assert schedule.ladder[-1].tokens == 1


def test_heads_that_are_never_right_cost_at_most_five_percent():
    sizes = play(AdaptiveTree(TREE, CALIBRATED, History()), 1000, never)
    assert sum(CURVE[size] for size in sizes) < 1.05 * 1000 * CURVE[1]
    assert sizes[0] > 1
    assert sizes.count(1) > 900


def test_the_largest_tree_is_chosen_again_when_it_pays():
    schedule = AdaptiveTree(TREE, CALIBRATED)
    assert set(play(schedule, 200, never)[-20:]) == {1}
    sizes = play(schedule, WAITS[1], always)
    assert set(sizes[-20:]) == {16}


def test_probes_without_gain_become_rarer():
    sizes = play(AdaptiveTree(TREE, CALIBRATED), 1200, never)
    probes = [step for step in range(60, 1200) if sizes[step] == 16 and sizes[step - 1] == 1]
    gaps = [after - before for before, after in itertools.pairwise(probes)]
    assert gaps == sorted(gaps)
    assert gaps[0] < gaps[-1]
    assert all(sizes[step : step + PROBE] == [16] * PROBE for step in probes if step + PROBE < 1200)


def test_a_load_that_slows_the_tree_down_is_noticed_only_with_history():
    def loaded(nodes):
        return 0.01 if nodes == 1 else 0.06

    noticing = play(AdaptiveTree(TREE, CALIBRATED, History()), 4 * RETIME, always, loaded)
    assert set(noticing[-WAITS[0] + PROBE :]) - {16} == {1}
    assert noticing[3 * RETIME :].count(1) > 0.8 * RETIME
    blind = play(AdaptiveTree(TREE, CALIBRATED), 4 * RETIME, always, loaded)
    assert set(blind) == {16}


def test_without_a_calibration_plain_steps_are_timed_early():
    history = History()

    def seconds(nodes):
        return 0.01 * (1 + nodes / 50)

    sizes = play(AdaptiveTree(TREE, history=history), 3 * WINDOW, always, seconds)
    assert sizes.count(1) == 2
    assert 1 in sizes[WINDOW - 1 : WINDOW + 2]
    again = play(AdaptiveTree(TREE, history=history), 3 * WINDOW, always, seconds)
    assert set(again) == {16}, "the next request knows"


def test_the_next_request_begins_with_what_earlier_texts_gave():
    history = History()
    dear = {1: 10.0, 2: 15.0, 4: 16.0, 8: 20.0, 16: 30.0}
    calibrated = Calibration(UNCALIBRATED.accuracies, CURVE, {"device": "a machine"})

    def extra(sizes):
        return sum(dear[size] for size in sizes) / len(sizes) / dear[1] - 1

    first = play(AdaptiveTree(TREE, calibrated, history), 128, never, lambda nodes: dear[nodes])
    assert first[0] == 16
    for _ in range(4):
        sizes = play(AdaptiveTree(TREE, calibrated, history), 128, never, lambda nodes: dear[nodes])
        assert sizes[0] == 1, "no tree paid before"
        assert extra(sizes) < 0.1
    assert extra(sizes) < extra(first) / 2, "and probes stay rare"
    play(AdaptiveTree(TREE, calibrated, history), 1024, always, lambda nodes: dear[nodes])
    sizes = play(AdaptiveTree(TREE, calibrated, history), 64, always, lambda nodes: dear[nodes])
    assert sizes[0] > 1, "trees pay by now"


def test_without_a_history_a_request_knows_nothing_of_others():
    schedule = AdaptiveTree(TREE, CALIBRATED)
    one, other = schedule.fork(), schedule.fork()
    play(one, 200, never)
    assert other.history.of(1).wait == WAITS[0]
    assert len(other.tree()) == 16


STEEP = {1: 10.0, 2: 11.0, 4: 12.0, 8: 14.0, 16: 25.0}


def the_best_child(tree, step):
    return tree.paths.index((0,)) if (0,) in tree.paths else 0


def test_on_another_machine_smaller_trees_are_tried_before_plain_decoding():
    elsewhere = Calibration(UNCALIBRATED.accuracies, UNCALIBRATED.latency)
    schedule = AdaptiveTree(TREE, elsewhere, History())
    assert [len(rung.tree) for rung in schedule.ladder] == [16, 8, 4, 2, 1]
    sizes = play(schedule, 200, the_best_child, lambda nodes: STEEP[nodes])
    assert sizes[0] == 16, "nothing is known about the machine"
    assert sizes.count(2) > 150, "two tokens a step for 1.1 plain steps; 16 nodes take 2.5"


def test_the_cost_of_a_size_that_was_not_timed_lies_between_those_that_were():
    history = History()
    schedule = AdaptiveTree(TREE, Calibration(UNCALIBRATED.accuracies, {1: 1.0}), history)
    for nodes in (1, 16):
        for _ in range(2):
            history.time(nodes, STEEP[nodes])
    costs = [schedule._cost(number) for number in range(len(schedule.ladder))]
    assert costs == pytest.approx([2.5, 1.7, 1.3, 1.1, 1.0])
    for _ in range(2):
        history.time(8, STEEP[8])
    assert schedule._cost(1) == pytest.approx(1.4)


def test_a_latency_curve_is_linear_between_its_points():
    assert interpolated(CURVE, 6) == pytest.approx(10.6)
    assert interpolated(CURVE, 16) == 11.6
    assert interpolated(CURVE, 20) == pytest.approx(12)
    assert interpolated({1: 3.0}, 9) == 3


def test_greedy_text_is_that_of_the_base_while_trees_change():
    base, ids = tiny(), varied_prompt("llama")
    model = MedusaModel.from_base(base, num_heads=3)
    text = base.generate(ids, max_new_tokens=100, do_sample=False).tolist()
    model.heads = ScriptedHeads(model, text, 0.0)
    output = model.generate(ids, max_new_tokens=90, do_sample=False, return_dict_in_generate=True)
    assert output.sequences.tolist()[0] == text[0][: ids.shape[1] + 90]
    assert 1 in output.stats.step_nodes, "it switched"
    assert max(output.stats.step_nodes) == len(model.tree)


def test_sampling_with_a_seed_repeats_the_text_and_the_trees():
    base, ids = tiny(), varied_prompt("llama")
    model = MedusaModel.from_base(base, num_heads=3)
    torch.manual_seed(0)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        runs.append(
            model.generate(ids, max_new_tokens=120, do_sample=True, return_dict_in_generate=True)
        )
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert runs[0].stats.step_nodes == runs[1].stats.step_nodes
    assert len(set(runs[0].stats.step_nodes)) == 2, "it switched"


def test_a_given_tree_is_always_used():
    base, ids = tiny(), varied_prompt("llama")
    model = MedusaModel.from_base(base, num_heads=3)
    tree = CandidateTree.chain(2)
    output = model.generate(
        ids, max_new_tokens=90, do_sample=False, tree=tree, return_dict_in_generate=True
    )
    assert set(output.stats.step_nodes) == {3}


def test_a_slow_first_step_of_a_size_does_not_count():
    """The first step of a size may generate code."""
    history = History()
    for nodes, seconds in ((1, 0.02), (4, 0.5), (1, 0.02), (4, 0.03)):
        history.time(nodes, seconds, rows=16)
    assert history.overhead(4, rows=16) == pytest.approx(1.5)


@pytest.mark.parametrize("slow", [0, 2, 4, 8, 16, 40])
@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize(("reach", "least", "most"), [(always, 0.9, 1.0), (never, 0.0, 0.1)])
def test_a_slow_beginning_does_not_mislead_for_long(slow, rows, reach, least, most):
    """A new process takes memory and generates code, so that its first steps are slow."""
    curve = {1: 10.0, 64: 20.0, 256: 40.0}
    calibrated = Calibration(UNCALIBRATED.accuracies, curve, {"device": "a machine"})
    schedule, sizes = AdaptiveTree(TREE, calibrated, History()), []
    for step in range(900):
        tree = schedule.tree()
        sizes.append(len(tree))
        seconds = interpolated(curve, rows * len(tree)) / 1000
        reached = [reach(tree, step)] * rows
        schedule.observe(reached, seconds * (20 if step < slow else 1))
    ended = sizes[-300:]
    assert least <= sum(size > 1 for size in ended) / len(ended) <= most


def test_steps_that_cannot_be_timed_do_not_make_plain_decoding_run_again_and_again():
    """Beside rows with larger trees, a schedule's steps have no duration of their own."""
    schedule = AdaptiveTree(TREE, CALIBRATED, History())
    play(schedule, RETIME + 1, always)
    assert len(schedule.tree()) == 1, "it is time to time plain decoding"
    sizes = []
    for step in range(200):
        tree = schedule.tree()
        sizes.append(len(tree))
        schedule.observe([always(tree, step)], None, rows=2)
    assert sizes.count(1) < 10


def test_a_busy_machine_does_not_end_a_tree_for_good():
    schedule, busy = AdaptiveTree(TREE, CALIBRATED, History()), range(300, 330)
    sizes = []
    for step in range(2500):
        tree = schedule.tree()
        sizes.append(len(tree))
        seconds = CURVE[len(tree)] / 1000 * (5 if step in busy else 1)
        schedule.observe([always(tree, step)], seconds)
    assert sizes[-500:].count(16) > 400


@pytest.mark.parametrize("rows", [1, 4])
def test_plain_steps_that_are_slower_than_a_tree_s_are_not_timed_all_the_time(rows):
    schedule, sizes = AdaptiveTree(TREE, CALIBRATED, History()), []
    for step in range(2000):
        tree = schedule.tree()
        sizes.append(len(tree))
        schedule.observe([always(tree, step)] * rows, 0.02 if len(tree) == 1 else 0.01)
    assert sizes[-1000:].count(1) < 40
