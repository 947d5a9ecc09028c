"""Tests of the budget of an engine: its caches never have more memory than they were given."""

import random

import pytest
import torch
from models import VOCAB, tiny

from medusa import CandidateTree, MedusaModel
from medusa.core.budget import bytes_per_token
from medusa.core.cache import TreeCache
from medusa.core.checks import CACHE_ARGUMENTS
from medusa.core.engine import PLAIN, Engine
from medusa.core.request import Request
from medusa.core.schedule import FixedTree
from medusa.core.slots import BLOCK

TREES = [PLAIN, CandidateTree.default(3, 8), CandidateTree.default(3, 40)]


def model_of(name="llama", capture=False, **changes):
    model = MedusaModel.from_base(tiny(name, max_position_embeddings=4096, **changes), num_heads=3)
    model.capture = capture
    return model


def tokens_of(*caches):
    """Return the tokens for which caches really have memory, tensors that they share once."""
    stores = {
        layer.keys.data_ptr(): len(layer.keys) * layer.keys.shape[2]
        for cache in caches
        if cache is not None
        for layer in cache.layers[:1]
        if layer.is_initialized
    }
    return sum(stores.values())


def watch(engine, monkeypatch):
    """Return a list that gets the real size of an engine's caches whenever it may have changed."""
    sizes, forward, admit = [], engine.model._forward, TreeCache.admit

    def measure(other):
        caches = tokens_of(engine._cache, other, engine.model._idle_cache)
        sizes.append(caches + engine.prefixes.tokens)

    def measured_forward(inputs):
        outputs = forward(inputs)
        measure(next(inputs[name] for name in CACHE_ARGUMENTS if name in inputs))
        return outputs

    def measured_admit(cache, prefilled, *arguments):
        admit(cache, prefilled, *arguments)
        measure(prefilled)

    monkeypatch.setattr(engine.model, "_forward", measured_forward)
    monkeypatch.setattr(TreeCache, "admit", measured_admit)
    return sizes


def random_request(rng, longest):
    length = rng.choice([1, 20, 200, rng.randrange(1, longest)])
    text = random.Random(rng.choice("abc"))  # so that prompts begin alike
    ids = [text.randrange(1, VOCAB) for _ in range(length)]
    return Request(ids, length + rng.choice([1, 8, 40]), schedule=FixedTree(rng.choice(TREES)))


@pytest.mark.parametrize("prefixes", [0, 10**6])
@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("budget", [4, 9, 16])
def test_caches_never_have_more_memory_than_was_given(capture, budget, prefixes, monkeypatch):
    rng, model = random.Random(f"{capture} {budget}"), model_of(capture=capture)
    engine = Engine(model, 6, 300, cache_tokens=budget * BLOCK, prefix_tokens=prefixes)
    sizes, rows, refused, together = watch(engine, monkeypatch), [], 0, 0
    for _ in range(40):
        try:
            rows.append(engine.submit(random_request(rng, 1500)))
        except ValueError:
            refused += 1
        for _ in range(rng.choice([0, 1, 12])):
            engine.step()
            together = max(together, len(engine.rows))
            assert engine.reserved <= budget * BLOCK
    while not engine.idle:
        engine.step()
    assert max(sizes) <= budget * BLOCK
    assert max(sizes) > budget * BLOCK / 2, "the memory is used"
    assert together > 1
    assert bool(refused) == (budget < (16 if capture else 9))
    assert {row.finish_reason for row in rows} == {"length"}
    assert engine.reserved == 0
    assert any(row.cached for row in rows) == bool(prefixes)
    monkeypatch.undo()
    for row in rng.sample(rows, 6):
        again = (other := Engine(model)).submit(row.request)
        while not other.idle:
            other.step()
        assert row.ids == again.ids


def test_requests_wait_in_order_until_there_is_room():
    engine = Engine(model_of(), cache_tokens=4 * BLOCK)
    plain = {"schedule": FixedTree(PLAIN)}
    first = engine.submit(Request([1] * 300, 310, **plain))
    long = engine.submit(Request([1] * 700, 710, **plain))
    short = engine.submit(Request([1, 2], 20, **plain))
    engine.step()
    assert [len(row.ids) for row in (first, long, short)] == [301, 700, 2]
    began = []
    while not engine.idle:
        began += [event.row for event in engine.step() if event.timing.nodes == 0]
    assert began == [long, short], "the short one does not overtake"
    assert len(short.ids) == 20


def test_rows_with_small_trees_have_room_for_the_largest_tree_of_the_step():
    model = model_of()
    engine = Engine(model, cache_tokens=4 * BLOCK)
    long = engine.submit(Request([1] * 240, 256, schedule=FixedTree(PLAIN)))
    wide = engine.submit(Request([1] * 3, 30, schedule=FixedTree(CandidateTree.default(3, 40))))
    assert engine.budget.needed([long]).columns == 257
    assert engine.budget.needed([long, wide]).columns == 256 + 40


@pytest.mark.parametrize("capture", [False, True])
def test_a_request_that_never_fits_is_refused_at_once(capture):
    engine = Engine(model_of(capture=capture), cache_tokens=2 * BLOCK)
    with pytest.raises(ValueError, match=r"600 tokens and a tree of 1 nodes .* has 512 .*shorten"):
        engine.submit(Request([1] * 5, 600, schedule=FixedTree(PLAIN)))
    assert engine.idle
    engine.submit(Request([1] * 5, 250, schedule=FixedTree(PLAIN)))
    assert not engine.idle


def test_an_engine_without_memory_is_refused():
    with pytest.raises(ValueError, match="cache_tokens must be at least 1, got 0"):
        Engine(model_of(), cache_tokens=0)


@torch.inference_mode()
def test_a_cache_that_is_cut_keeps_its_rows():
    model, texts = model_of(), [[3, 4, 5], [6, 7]]
    cache = model.new_cache(1000)
    for text in texts:
        ids, alone = torch.tensor([text]), model.new_cache()
        model.prefill(ids, torch.ones_like(ids), alone)
        cache.admit(alone, [0])
    before = [each[row, :, :2].clone() for each in cache.states for row in (0, 1)]
    assert cache.allocated == (2, 2 * BLOCK)
    cache.limit(2, 200, 2 * BLOCK)
    assert cache.allocated == (2, BLOCK)
    after = [each[row, :, :2] for each in cache.states for row in (0, 1)]
    assert all(map(torch.equal, before, after))
    cache.limit(0, 200, 0)
    assert cache.allocated == (0, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("llama", 2 * 2 * 2 * 8 * 8), ("gpt2", 2 * 2 * 4 * 8 * 8), ("qwen3", 2 * 2 * 2 * 8 * 8)],
)
def test_bytes_of_a_token_are_those_of_keys_and_values_in_all_layers(name, expected):
    """Layers, keys and values, heads, width, bytes of float64."""
    assert bytes_per_token(model_of(name)) == expected
    half = MedusaModel.from_base(tiny(name, dtype=torch.bfloat16), num_heads=2)
    assert bytes_per_token(half) == expected / 4
