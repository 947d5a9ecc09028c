"""Compiled decoder layers: the same text, one program for layers alike, changes take effect."""

import pytest
import torch
from models import ScriptedHeads, tiny, varied_prompt

from medusa import CandidateTree, MedusaModel
from medusa.core.engine import Engine
from medusa.core.layers import CompiledLayer
from medusa.core.request import Request

NEW = 30
TREE = CandidateTree.default(3, 8)


def compiled(name="llama", dtype=torch.float64, **changes):
    return MedusaModel.from_base(
        tiny(name, dtype, **changes), num_heads=3, tree=TREE, compiled=True
    )


def scripted(model, prompts):
    texts = [
        model.base.generate(ids, max_new_tokens=NEW + 8, do_sample=False)[0].tolist()
        for ids in prompts
    ]
    model.heads = ScriptedHeads(model, texts, 0.7)
    return texts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds"), [("llama", 1), ("gemma3_text", 2), ("gpt2", 1), ("cohere", 1)]
)
def test_a_compiled_model_generates_the_same_text(name, kinds):
    model, ids = compiled(name), varied_prompt(name)
    (text,) = scripted(model, [ids])
    output = model.generate(
        ids, max_new_tokens=NEW, do_sample=False, tree=TREE, return_dict_in_generate=True
    )
    assert output.sequences.tolist()[0] == text[: ids.shape[1] + NEW]
    assert output.stats.acceleration_rate > 1.2
    assert model.programs.failed is None
    assert len(model.programs) == 2 * kinds, "one for plain decoding, one for trees"


@pytest.mark.slow
def test_packed_weights_rows_of_different_lengths_and_growing_caches(monkeypatch):
    monkeypatch.setattr("medusa.core.cache.BLOCK", 16)  # caches are full, and grow, several times
    model = compiled(dtype=torch.float32)
    ids = varied_prompt("llama")
    short = ids[:, 4:]
    batch = torch.cat([ids, torch.cat([torch.zeros_like(ids[:, :4]), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    texts = scripted(model, [ids, short])
    output = model.generate(
        batch, attention_mask=mask, max_new_tokens=NEW, do_sample=False, tree=TREE
    )
    assert model.packs
    assert output[0].tolist() == texts[0][: ids.shape[1] + NEW]
    assert output[1, 4:].tolist() == texts[1][: ids.shape[1] - 4 + NEW]
    assert len(model.programs) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_requests_that_join_and_leave_need_no_further_programs(name):
    model, ids = compiled(name), varied_prompt(name)
    prompts = [ids[:, place:] for place in range(6)]
    texts = scripted(model, prompts)
    engine = Engine(model, max_rows=5)
    rows = [
        engine.submit(Request(each[0].tolist(), each.shape[1] + 12 + 3 * place))
        for place, each in enumerate(prompts)
    ]
    counts = set()
    while not engine.idle:
        counts.add(len(engine.rows))
        engine.step()
    assert {1, 2, 3, 4, 5} < counts
    for row, text in zip(rows, texts, strict=True):
        assert row.ids == text[: len(row.ids)]
    assert model.programs.failed is None
    assert len(model.programs) == 2, "one for plain decoding, one for trees"


def negated(model):
    model.layers[0].mlp.down_proj.register_forward_hook(lambda module, inputs, output: -output)


def another_weight(model):
    model.layers[0].mlp.up_proj.weight.mul_(-1)


def a_value_of_an_unpacked_weight(model):
    model.norm.weight[:8].mul_(-1)


def a_buffer(model):
    model.rotary_emb.inv_freq = model.rotary_emb.inv_freq * 0.5


@pytest.mark.slow
def test_changes_of_the_base_take_effect():
    model, ids = compiled(dtype=torch.float32), varied_prompt("llama")
    before = model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE)
    for change in (another_weight, a_value_of_an_unpacked_weight, a_buffer, negated):
        with torch.no_grad():
            change(model.base.model)
        expected = model.base.generate(ids, max_new_tokens=NEW, do_sample=False)
        assert not torch.equal(before, expected), change
        after = model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE)
        assert torch.equal(after, expected), change
        before = after


def test_a_model_that_cannot_be_compiled_warns_and_decodes_uncompiled(monkeypatch):
    model, ids = compiled(), varied_prompt("llama")

    def no_compiler(*_):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr("medusa.runtime.compiled.Program.__init__", no_compiler)
    (text,) = scripted(model, [ids])
    with pytest.warns(UserWarning, match="cannot be compiled here") as warned:
        output = model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE)
    assert [str(each.message) for each in warned if "compiled" in str(each.message)] == [
        "this model cannot be compiled here, and goes on as it is: no C++ compiler"
    ]
    assert output.tolist()[0] == text[: ids.shape[1] + NEW]
    assert model.programs.failed == "no C++ compiler"


@pytest.mark.slow
def test_layers_of_many_kinds_are_not_compiled():
    changes = {"num_hidden_layers": 7, "scale_attn_by_inverse_layer_idx": True}
    model, ids = compiled("gpt2", **changes), varied_prompt("gpt2")
    with pytest.warns(UserWarning, match="its layers are of 7 kinds"):
        model.refresh()
    (text,) = scripted(model, [ids])
    output = model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE)
    assert output.tolist()[0] == text[: ids.shape[1] + NEW]


def test_a_model_whose_layers_are_not_found_says_so(monkeypatch):
    model = compiled()
    monkeypatch.setattr(model.base.config, "num_hidden_layers", 99)
    with pytest.warns(UserWarning, match="its decoder layers were not found"):
        model.refresh()


@pytest.mark.slow
def test_autocast_has_programs_of_its_own():
    model, ids = compiled(dtype=torch.float32), varied_prompt("llama")
    model.generate(ids, max_new_tokens=4, do_sample=False, tree=TREE)
    assert len(model.programs) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model.base.generate(ids, max_new_tokens=NEW, do_sample=False)
        text = model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE)
    assert len(model.programs) == 4
    assert text.shape == expected.shape


@pytest.mark.slow
def test_a_layer_with_a_hook_runs_as_it_is_and_the_others_are_compiled():
    model, ids = compiled(num_hidden_layers=3), varied_prompt("llama")
    negated(model.base.model)
    (text,) = scripted(model, [ids])
    output = model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE)
    assert output.tolist()[0] == text[: ids.shape[1] + NEW]
    kinds = [
        each.weights.kind
        for each in model.runner.model.modules()
        if isinstance(each, CompiledLayer)
    ]
    assert kinds[0] is None
    assert kinds[1] == kinds[2] is not None
    assert len(model.programs) == 2


def test_steps_are_compiled_in_advance_once_and_not_for_every_request(monkeypatch):
    model, ids = compiled(dtype=torch.float32), varied_prompt("llama")
    monkeypatch.setattr(CompiledLayer, "forward", lambda self, *a, **named: self.inner(*a, **named))
    verify, calls = MedusaModel.verify, []
    monkeypatch.setattr(
        MedusaModel, "verify", lambda self, *a: calls.append(len(a[0])) or verify(self, *a)
    )
    for rows, extra in ((1, 2), (1, 0), (2, 2), (2, 0)):
        calls.clear()
        output = model.generate(
            ids.repeat(rows, 1),
            max_new_tokens=6,
            do_sample=False,
            tree=TREE,
            return_dict_in_generate=True,
        )
        assert len(calls) == output.stats.steps + extra
