import copy

import pytest
import torch
from models import ARCHITECTURES, prompt, tiny
from torch import nn

from medusa import MedusaConfig, MedusaHeads, MedusaModel
from medusa.backends import PackedLinear, is_stale, packed, worth_packing
from medusa.heads import LogitRule

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this torch")


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_the_plain_one_up_to_rounding(rows, bias):
    linear = nn.Linear(24, 40, bias=bias)
    states = torch.randn(2, rows, 24)
    torch.testing.assert_close(PackedLinear(linear.weight, linear.bias)(states), linear(states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_packed_model_computes_the_same(name):
    base = tiny(name, dtype=torch.float32, attention="eager")
    shadow = packed(base)
    assert any(isinstance(module, PackedLinear) for module in shadow.modules())
    with torch.inference_mode():
        torch.testing.assert_close(shadow(prompt(9)).logits, base(prompt(9)).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_heads_equal_the_heads(num_layers, own, bias):
    config = MedusaConfig(3, num_layers, 16, 24, own_lm_head=own, bias=bias)
    heads = MedusaHeads(config, LogitRule(0.5, 4.0), torch.randn(24) if own else None)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    lm_head, hidden = nn.Linear(16, 24, bias=False), torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(packed(heads)(hidden, lm_head), heads(hidden, lm_head), rtol=1e-4, atol=1e-4)


def test_trained_heads_are_packed_anew():
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2)
    model.generate(prompt(), max_new_tokens=4)
    before = model.running_parts()[1]
    with torch.no_grad():
        model.heads.w2.mul_(2)
    assert is_stale(before)
    model.generate(prompt(), max_new_tokens=4)
    assert model.running_parts()[1] is not before


def test_the_callers_model_is_left_as_it_was():
    base = tiny(dtype=torch.float32)
    modules, weights = dict(base.named_modules()), {name: p.data_ptr() for name, p in base.named_parameters()}
    state = {name: value.clone() for name, value in base.state_dict().items()}
    model = MedusaModel.from_base(base, num_heads=2)
    model.generate(prompt(), max_new_tokens=8)
    assert model.runtime is not base
    assert dict(base.named_modules()) == modules
    assert {name: p.data_ptr() for name, p in base.named_parameters()} == weights
    assert base.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_changed_weights_are_packed_anew():
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=2)
    model.generate(prompt(), max_new_tokens=4)
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.mul_(-1)
    assert is_stale(model.runtime)
    changed = model.generate(prompt(), max_new_tokens=20)
    assert not is_stale(model.runtime)
    assert torch.equal(changed, base.generate(prompt(), max_new_tokens=20, do_sample=False))


def test_the_switch_and_what_cannot_be_packed():
    base = tiny(dtype=torch.float32)
    off = MedusaModel.from_base(base, num_heads=2, prepack=False)
    off.generate(prompt(), max_new_tokens=4)
    assert off.runtime is base
    assert not worth_packing(tiny(dtype=torch.float64))


@pytest.fixture
def owned(tmp_path):
    """A model the library loaded itself, after its first answer, and the state it was loaded with."""
    base = tiny(dtype=torch.float32)
    base.save_pretrained(tmp_path)
    model = MedusaModel.from_base(tmp_path, num_heads=2)
    model.base.generation_config.eos_token_id = None
    model.generate(prompt(), max_new_tokens=4)
    return model, base


def released(model):
    layers = [each for each in model.runtime.modules() if isinstance(each, PackedLinear)]
    return sum(each.released for each in layers), len(layers)


def test_a_model_the_library_loaded_holds_its_weights_once(owned):
    model, base = owned
    count, layers = released(model)
    assert count == layers
    kept = sum(p.numel() for each in model.base.modules() for p in dict.values(each._parameters) if p is not None)
    assert kept < 0.3 * base.num_parameters()


def test_released_weights_come_back_as_they_were(owned, tmp_path):
    model, base = owned
    state = model.base.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert released(model)[0] == 0
    text = model.generate(prompt(), max_new_tokens=20)
    assert released(model)[0] == released(model)[1]
    assert torch.equal(text, base.generate(prompt(), max_new_tokens=20, do_sample=False))
    model.base.save_pretrained(tmp_path / "again")
    assert model.base.num_parameters() == base.num_parameters()


def test_a_restored_weight_that_is_changed_counts(owned):
    model, base = owned
    with torch.no_grad():
        for changed in (model.base, base):
            changed.model.layers[0].mlp.down_proj.weight.mul_(-1)
    text = model.generate(prompt(), max_new_tokens=20)
    assert torch.equal(text, base.generate(prompt(), max_new_tokens=20, do_sample=False))


def test_released_models_can_be_moved_and_copied(owned):
    model, base = owned
    twin = copy.deepcopy(model.base)
    torch.testing.assert_close(twin(prompt()).logits, base(prompt()).logits)
    model.base.to(torch.float64)
    torch.testing.assert_close(model.base(prompt()).logits, base.double()(prompt()).logits)


def test_a_layer_that_is_replaced_counts(owned):
    """As adapters do."""
    model, base = owned
    for changed in (model.base, base):
        wrapped = nn.Sequential(changed.model.layers[0].mlp.down_proj, nn.Linear(32, 32))
        with torch.no_grad():
            nn.init.eye_(wrapped[1].weight).mul_(-1)
        nn.init.zeros_(wrapped[1].bias)
        changed.model.layers[0].mlp.down_proj = wrapped
    text = model.generate(prompt(), max_new_tokens=20)
    assert torch.equal(text, base.generate(prompt(), max_new_tokens=20, do_sample=False))
