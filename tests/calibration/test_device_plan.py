"""Plans for devices that are not at hand."""

import pytest

from medusa.calibration.plan import HeadsShape, best, plans
from medusa.core.schedule import PUBLISHED_ACCURACIES
from medusa.hardware.devices import DEVICES, Device
from medusa.hardware.operators import LLAMA, ModelShape

SMALL = ModelShape(64, 128, 2, 4, 4, 16, 100)
A100 = DEVICES["A100-80GB-PCIe"]


def test_about_64_candidates_are_best_for_a_7b_model_at_batch_1():
    found = plans(LLAMA["7b"], A100, PUBLISHED_ACCURACIES, HeadsShape(5), 1, 1024)
    assert [len(plan.tree) for plan in found] == list(range(1, 257))
    chosen = best(found)
    assert 40 < len(chosen.tree) < 80
    assert chosen.speedup == chosen.tokens_per_step / chosen.overhead
    assert chosen.tokens_per_step == pytest.approx(chosen.tree.expected(PUBLISHED_ACCURACIES))


def test_large_batches_pay_for_small_trees_only():
    sizes = []
    for batch in (1, 8, 64):
        chosen = best(plans(LLAMA["7b"], A100, PUBLISHED_ACCURACIES, HeadsShape(5), batch, 1024))
        sizes.append(len(chosen.tree))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


def test_heads_that_are_never_right_do_not_pay():
    chosen = best(plans(SMALL, A100, [[0.01, 0.02]], HeadsShape(1), 1, 16, max_nodes=3))
    assert len(chosen.tree) == 1
    assert chosen.speedup == chosen.overhead == 1


def test_memory_holds_weights_heads_and_cache():
    device = Device("x", 1.0, 1.0, 1e9)
    (plain, *_) = plans(SMALL, device, [[0.5]], HeadsShape(2, 1, True), 3, 10, max_nodes=2)
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 64 * 100
    heads = 2 * (64 * 65 + 64 * 100)
    cache = 2 * 2 * 3 * 10 * 64
    assert plain.memory == 2 * (weights + heads + cache)


def test_shared_lm_heads_have_no_weights_of_their_own():
    own, shared = HeadsShape(3, 2, True), HeadsShape(3, 2, False)
    assert own.parameters(SMALL) - shared.parameters(SMALL) == 3 * 64 * 100
    assert own.work(SMALL, 1).flops == shared.work(SMALL, 1).flops
    assert own.work(SMALL, 1).weights > shared.work(SMALL, 1).weights
