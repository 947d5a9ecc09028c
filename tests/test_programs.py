import pytest
import torch
from models import ScriptedHeads, tiny, varied_prompt

from medusa import CandidateTree, MedusaModel
from medusa.cache import BLOCK
from medusa.programs import Argument, Programs


def scaled_into(store, values):
    store[:, : values.shape[1]] = 2 * values
    return (store[:, : values.shape[1]].sum(1) + values.shape[1],)


def arguments(columns, width):
    return [Argument(torch.zeros(3, columns), (1,)), Argument(torch.randn(3, width), (1,))]


def test_one_program_serves_all_sizes_and_writes_in_place():
    programs = Programs()
    for columns, width in ((20, 5), (20, 7), (300, 250)):
        given = arguments(columns, width)
        store, values = (argument.tensor for argument in given)
        (found,) = programs.get("state", scaled_into, given)([store, values])
        torch.testing.assert_close(store[:, :width], 2 * values)
        torch.testing.assert_close(found, 2 * values.sum(1) + width)
        assert not store[:, width:].any()
    assert len(programs) == 1
    programs.get("another state", scaled_into, arguments(20, 5))
    assert len(programs) == 1


def test_a_program_does_not_run_on_sizes_that_it_does_not_hold_for():
    programs = Programs()
    programs.get("state", scaled_into, arguments(20, 5))
    programs.get("state", scaled_into, arguments(20, 1))
    assert len(programs) == 2


NEW = 30
TREE = CandidateTree.default(3, 8)


def compiled(name="llama", dtype=torch.float64, **changes):
    return MedusaModel.from_base(tiny(name, dtype, **changes), num_heads=3, tree=TREE, compiled=True)


def scripted(model, prompts):
    texts = [model.base.generate(ids, max_new_tokens=NEW + 8, do_sample=False)[0].tolist() for ids in prompts]
    model.heads = ScriptedHeads(model, texts, 0.7)
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "gpt2", "olmo2", "cohere"])
def test_a_compiled_model_writes_the_same(name):
    model, ids = compiled(name), varied_prompt(name)
    (text,) = scripted(model, [ids])
    output = model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE, return_dict_in_generate=True)
    assert output.sequences.tolist()[0] == text[: ids.shape[1] + NEW]
    assert output.stats.acceleration_rate > 1.2
    assert model.compiled
    assert len(model.programs) == 2, "one for plain decoding, one for trees"


@pytest.mark.slow
def test_packed_weights_rows_of_different_lengths_and_growing_caches():
    model = compiled(dtype=torch.float32, max_position_embeddings=1024)
    assert model.prepack
    ids = varied_prompt("llama").repeat(1, 20)[:, : BLOCK - 20]
    short = ids[:, 4:]
    batch = torch.cat([ids, torch.cat([torch.zeros_like(ids[:, :4]), short], 1)])
    mask = torch.ones_like(batch)
    mask[1, :4] = 0
    texts = scripted(model, [ids, short])
    output = model.generate(batch, attention_mask=mask, max_new_tokens=NEW, do_sample=False, tree=TREE)
    assert output[0].tolist() == texts[0][: BLOCK - 20 + NEW]
    assert output[1, 4:].tolist() == texts[1][: BLOCK - 24 + NEW]
    assert len(model.programs) == 2


@pytest.mark.slow
def test_other_weights_make_another_program():
    model, ids = compiled(dtype=torch.float32), varied_prompt("llama")
    model.generate(ids, max_new_tokens=4, do_sample=False, tree=TREE)
    with torch.no_grad():
        model.base.model.layers[0].mlp.up_proj.weight.mul_(-1)
        model.base.model.norm.weight.mul_(0.5)
    expected = model.base.generate(ids, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE), expected)


def test_a_model_that_cannot_be_compiled_says_so_and_goes_on(monkeypatch):
    model, ids = compiled(), varied_prompt("llama")

    def no_compiler(*_):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr("medusa.programs.Program.__init__", no_compiler)
    (text,) = scripted(model, [ids])
    with pytest.warns(UserWarning, match="cannot be compiled here, and goes on as it is: no C\\+\\+ compiler$"):
        output = model.generate(ids, max_new_tokens=NEW, do_sample=False, tree=TREE)
    assert output.tolist()[0] == text[: ids.shape[1] + NEW]
    assert not model.compiled
