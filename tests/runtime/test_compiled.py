import pytest
import torch
from models import ScriptedHeads, tiny, varied_prompt

from medusa import CandidateTree, MedusaModel
from medusa.runtime.compiled import Programs


def scaled_into(values, *stores):
    width = values.shape[1]
    for store in stores:
        store[0, :, :width, 0] = 2 * values
    return (stores[1][0, :, :width, 0].sum(1) + width,)


def arguments(columns, width, dtype=torch.float32):
    return [torch.randn(3, width).to(dtype)], [
        torch.zeros(1, 3, columns, 4, dtype=dtype) for _ in range(2)
    ]


def test_one_program_serves_all_sizes_and_writes_in_place():
    programs = Programs()
    for columns, width in ((20, 5), (20, 7), (300, 250)):
        (values,), stores = arguments(columns, width)
        (found,) = programs.get("state", scaled_into, [values], stores)([values, *stores])
        for store in stores:
            torch.testing.assert_close(store[0, :, :width, 0], 2 * values)
            assert not store[0, :, width:].any()
        torch.testing.assert_close(found, 2 * values.sum(1) + width)
    assert len(programs) == 1
    programs.get("another state", scaled_into, *arguments(20, 5))
    assert len(programs) == 1


def test_a_program_runs_only_on_sizes_and_dtypes_that_fit():
    programs = Programs()
    for width, dtype in ((5, torch.float32), (1, torch.float32), (5, torch.float64)):
        (values,), stores = arguments(20, width, dtype)
        (found,) = programs.get("state", scaled_into, [values], stores)([values, *stores])
        torch.testing.assert_close(found, 2 * values.sum(1) + width)
    assert len(programs) == 3


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
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "cohere"])
def test_a_compiled_model_generates_the_same_text(name):
    model, ids = compiled(name), varied_prompt(name)
    (text,) = scripted(model, [ids])
    output = model.generate(
        ids, max_new_tokens=NEW, do_sample=False, tree=TREE, return_dict_in_generate=True
    )
    assert output.sequences.tolist()[0] == text[: ids.shape[1] + NEW]
    assert output.stats.acceleration_rate > 1.2
    assert model.compiled
    assert len(model.programs) == 2, "one for plain decoding, one for trees"


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
    assert not model.compiled
