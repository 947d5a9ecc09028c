import pytest
from models import tiny, varied_prompt

from medusa import CandidateTree, MedusaModel
from medusa.calibration.latency import Latency, TimingRounds, measure_latency, usual_contexts
from medusa.core.engine import PLAIN

TREES = [PLAIN, CandidateTree.chain(1), CandidateTree.default(2, 4), CandidateTree.default(2, 8)]


def test_every_size_is_timed_in_every_round_and_context():
    model, ids = MedusaModel.from_base(tiny(), num_heads=2), varied_prompt("llama")
    done = []
    latency = measure_latency(
        model,
        ids[0].tolist(),
        TREES,
        {"do_sample": False},
        contexts=(8, 40),
        rounds=3,
        finished=done.append,
    )
    assert done == [3, 3]
    for context, rounds in latency.rounds.items():
        assert context in (8, 40)
        assert len(rounds) == 3
        assert all(sorted(each) == [1, 2, 4, 8] and min(each.values()) > 0 for each in rounds)
    assert latency.curve()[1] == pytest.approx(1000 * latency.plain())


def test_a_second_tree_of_a_size_is_left_out():
    model, ids = MedusaModel.from_base(tiny(), num_heads=2), varied_prompt("llama")
    trees = [*TREES, CandidateTree.default(2, 8), PLAIN]
    arguments = {"do_sample": False}
    latency = measure_latency(
        model, ids[0].tolist(), trees, arguments, contexts=(8,), rounds=2, batch_size=1
    )
    assert [sorted(each) for each in latency.rounds[8]] == [[1, 2, 4, 8]] * 2


@pytest.mark.parametrize(
    "arguments", [{"do_sample": False, "eos_token_id": 5}, {"do_sample": True, "temperature": 2.0}]
)
def test_end_tokens_and_sampling_do_not_end_the_timing(arguments):
    model, ids = MedusaModel.from_base(tiny(), num_heads=2), varied_prompt("llama")
    latency = measure_latency(
        model, ids[0].tolist(), TREES[1:], arguments, contexts=(20,), rounds=8, batch_size=2
    )
    assert len(latency.rounds[20]) == 8
    assert 1 in latency.rounds[20][0], "plain decoding is always there"


def test_orders_differ_between_rounds():
    schedule, orders = TimingRounds(TREES), []
    for _ in range(5):
        order = []
        for _ in TREES:
            order.append(len(schedule.tree()))
            schedule.observe([0], 0.1)
        orders.append(tuple(order))
    assert all(sorted(order) == [1, 2, 4, 8] for order in orders)
    assert len(set(orders)) > 1
    assert len(schedule.finished) == 4, "the first does not count"


def test_a_slow_period_does_not_change_the_overheads():
    steady = [{1: 0.010, 8: 0.012} for _ in range(5)]
    slow = [{1: 0.030, 8: 0.036} for _ in range(4)]
    overheads = Latency({100: steady + slow}).overheads()
    assert overheads[8] == pytest.approx([1.2] * 9)
    assert Latency({100: steady + slow}).curve()[8] == pytest.approx(12)


def test_latency_never_decreases_with_the_number_of_nodes():
    rounds = [{1: 0.010, 2: 0.009, 4: 0.014, 8: 0.012}] * 3
    assert list(Latency({100: rounds}).curve().values()) == pytest.approx([10, 10, 14, 14])


def test_usual_contexts_are_a_quarter_and_three_quarters_into_the_texts():
    assert usual_contexts([[1] * 10, [1] * 20], [4, 4]) == (12, 22)
    assert usual_contexts([[1] * 10], [1]) == (10,)
