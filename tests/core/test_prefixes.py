"""Tests of prefixes: prompts that begin like earlier texts get the answers they get without."""

import random

import pytest
import torch
from models import VOCAB, tiny

from medusa import CandidateTree, MedusaModel
from medusa.core.engine import Engine
from medusa.core.prefixes import SIZE, Prefixes
from medusa.core.request import Request
from medusa.core.schedule import FixedTree

TREE = FixedTree(CandidateTree.default(3, 8))


def model_of(name="llama", **changes):
    model = MedusaModel.from_base(tiny(name, **changes), num_heads=3)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.heads.parameters():
            weight.add_(0.3 * weight.std() * torch.randn_like(weight))
    return model


def words(length, seed=0):
    rng = random.Random(seed)
    return [rng.randrange(1, VOCAB) for _ in range(length)]


def run(engine):
    events = []
    while not engine.idle:
        events += engine.step()
    return events


def answered(engine, ids, new=20):
    row = engine.submit(Request(ids, len(ids) + new, schedule=TREE))
    run(engine)
    assert row.finish_reason == "length"
    return row


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2", "qwen2", "falcon"])
def test_a_chat_gets_the_same_answers_with_and_without_prefixes(name, capture):
    model = model_of(name)
    model.capture = capture
    engine, chat = Engine(model, prefill_tokens=40, prefix_tokens=10 * SIZE), words(50)
    for turn in range(4):
        row = answered(engine, chat)
        assert row.cached == (len(chat) - 1) // SIZE * SIZE if turn else row.cached == 0
        assert row.ids == answered(Engine(model), chat).ids
        chat = [*row.ids, *words(11, seed=turn)]


def test_requests_that_share_a_system_prompt_reuse_it_while_others_decode():
    model, rng = model_of(), random.Random(0)
    engine = Engine(model, max_rows=6, prefill_tokens=64, prefix_tokens=20 * SIZE)
    systems, rows = [words(70, seed=seed) for seed in (1, 2)], []
    for _ in range(24):
        ids = [*rng.choice(systems), *words(rng.randrange(1, 20), seed=rng.random())]
        rows.append(engine.submit(Request(ids, len(ids) + rng.choice([1, 9, 30]), schedule=TREE)))
        for _ in range(rng.choice([0, 2, 5])):
            engine.step()
    run(engine)
    assert {row.cached for row in rows} == {0, 64}
    assert sum(row.cached > 0 for row in rows) > 12
    for row in rows:
        new = len(row.ids) - len(row.request.ids)
        assert row.ids == answered(Engine(model), row.request.ids, new).ids


def test_a_step_runs_as_many_prompts_with_known_prefixes_as_its_tokens_allow():
    engine, system = Engine(model_of(), prefill_tokens=30, prefix_tokens=10 * SIZE), words(64)
    answered(engine, [*system, 5])
    for seed in range(5):
        engine.submit(Request([*system, *words(9, seed)], 90))
    assert [len(engine.rows) for _ in range(2) if engine.step()] == [3, 5]
    assert all(row.cached == 64 for row in engine.rows)


def test_prefixes_are_off_by_default():
    engine = Engine(model_of())
    assert [answered(engine, words(70)).cached for _ in range(2)] == [0, 0]
    assert engine.prefixes.tokens == 0
    with pytest.raises(ValueError, match="prefix_tokens must be 0 or more, got -1"):
        Engine(model_of(), prefix_tokens=-1)


def replace_weights(base):
    base.load_state_dict(tiny(seed=5).state_dict())


def add_noise(base):
    with torch.no_grad():
        base.model.norm.weight.add_(torch.linspace(0, 3, 32))


def replace_a_parameter(base):
    embedding = base.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(embedding.weight.detach().flip(0))


def change_a_setting(base):
    for layer in base.model.layers:
        layer.self_attn.scaling *= 2


def hook_a_layer(base):
    base.model.layers[0].register_forward_hook(lambda module, given, output: output * 1.5)


@pytest.mark.parametrize("prepack", [False, None])
@pytest.mark.parametrize(
    "change", [replace_weights, add_noise, replace_a_parameter, change_a_setting, hook_a_layer]
)
def test_states_of_other_weights_are_dropped(change, prepack):
    base = tiny(dtype=torch.float32 if prepack is None else torch.float64)
    model = MedusaModel.from_base(base, num_heads=3, prepack=prepack)
    engine, ids = Engine(model, prefix_tokens=10 * SIZE), words(70)
    answered(engine, ids)
    before = answered(engine, ids)
    assert before.cached == 64
    under_way = engine.submit(Request(ids, len(ids) + 40, schedule=TREE))
    engine.step()
    change(base)
    after = answered(engine, ids)
    assert under_way.finished
    assert after.cached == 0
    assert after.ids == answered(Engine(model), ids).ids != before.ids
    again = answered(engine, ids)
    assert (again.cached, again.ids) == (64, after.ids)
    longer = answered(engine, [*under_way.ids, 1])
    assert longer.cached <= 64 + SIZE, "a text begun with the old weights is not reused"
    assert longer.ids == answered(Engine(model), [*under_way.ids, 1]).ids


def test_models_whose_rotary_factors_change_with_the_length_keep_no_prefixes():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    engine = Engine(model_of(rope_parameters=rope), prefix_tokens=20 * SIZE)
    assert [answered(engine, words(70)).cached for _ in range(2)] == [0, 0]
    assert engine.prefixes.tokens == 0


def test_a_failed_request_leaves_no_prefix():
    engine = Engine(model_of(), prefix_tokens=10 * SIZE)

    def stop(ids):
        if len(ids) > 100:
            raise RuntimeError("a stop rule's own error")

    row = engine.submit(Request(words(70), 140, stop=stop, schedule=TREE))
    run(engine)
    assert row.finish_reason == "error"
    assert engine.prefixes.tokens == 64, "its prompt was kept when it began"


def test_a_closed_engine_keeps_no_prefixes():
    engine = Engine(model_of(), prefix_tokens=10 * SIZE)
    answered(engine, words(70))
    assert engine.prefixes.tokens > 0
    engine.close()
    assert engine.prefixes.tokens == 0


class Columns:
    """A cache whose states are the numbers of its columns."""

    def copied(self, row, begin, end):
        return [torch.arange(begin, end)[None]]

    def begin_with(self, states, end):
        self.states = states


def test_texts_share_blocks_and_the_least_recently_used_are_dropped_last_block_first():
    prefixes, cache = Prefixes(5 * SIZE), Columns()
    common = words(2 * SIZE)
    one, two = [*common, *words(SIZE, 1)], [*common, *words(2 * SIZE, 2)]
    prefixes.store(one, cache, 0, 100 * SIZE)
    prefixes.store(two, cache, 0, 100 * SIZE)
    assert prefixes.tokens == 5 * SIZE, "the common blocks are kept once"
    assert prefixes.load([*two, 7], cache) == 4 * SIZE
    assert cache.states[0][0].tolist() == list(range(4 * SIZE))
    prefixes.store(words(SIZE, 3), cache, 0, 100 * SIZE)
    assert prefixes.shared([*one, 7]) == 2 * SIZE, "used before the others"
    assert prefixes.shared([*two, 7]) == 4 * SIZE
    prefixes.limit(3 * SIZE)
    assert prefixes.shared([*two, 7]) == 2 * SIZE
    assert prefixes.shared(two[:-SIZE]) == 2 * SIZE
    prefixes.store(words(9 * SIZE, 4), cache, 0, 4 * SIZE + 5)
    assert prefixes.tokens == 4 * SIZE
    assert prefixes.shared([*words(9 * SIZE, 4), 7]) == 4 * SIZE
    prefixes.store(words(SIZE, 5), cache, 0, -1)
    assert prefixes.tokens == 4 * SIZE


def test_the_last_token_of_a_prompt_is_always_run():
    prefixes, cache = Prefixes(5 * SIZE), Columns()
    prefixes.store(words(2 * SIZE), cache, 0, 5 * SIZE)
    assert prefixes.shared(words(2 * SIZE)) == SIZE
    assert prefixes.shared([*words(2 * SIZE), 1]) == 2 * SIZE


def test_a_frozen_model_is_read_once(monkeypatch):
    model, reads = model_of(), []
    refresh = model.refresh
    monkeypatch.setattr(model, "refresh", lambda: (reads.append(1), refresh()))
    ids = words(2 * SIZE + 5)
    for frozen, times in ((True, 1), (False, 3)):
        engine = Engine(model, prefix_tokens=10 * SIZE, frozen=frozen)
        reads.clear()
        texts = [answered(engine, ids) for _ in range(3)]
        assert len(reads) == times
        assert [row.cached for row in texts] == [0, 2 * SIZE, 2 * SIZE]
        assert texts[0].ids == texts[1].ids == texts[2].ids
