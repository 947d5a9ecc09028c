import copy

import pytest
import torch
from models import ARCHITECTURES, prompt, tiny
from torch import nn

from medusa import MedusaConfig, MedusaHeads, MedusaModel
from medusa.backends import (
    HalfWeight,
    PackedLayers,
    PackedWeight,
    _is_released,
    _sixteen_bits,
    packed_heads,
    worth_packing,
)
from medusa.heads import LogitRule

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this torch")


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_the_plain_one_up_to_rounding(rows, bias):
    linear = nn.Linear(24, 40, bias=bias)
    states = torch.randn(2, rows, 24)
    torch.testing.assert_close(PackedWeight(linear.weight, linear.bias)(states), linear(states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_packed_model_computes_the_same(name, monkeypatch):
    base = tiny(name, dtype=torch.float32, attention="eager")
    layers = PackedLayers()
    layers.refresh(base)
    product, calls = PackedWeight.__call__, []
    monkeypatch.setattr(PackedWeight, "__call__", lambda self, states: calls.append(1) or product(self, states))
    with torch.inference_mode():
        plain = base(prompt(9)).logits
        with layers.running():
            run = base(prompt(9)).logits
    torch.testing.assert_close(run, plain, rtol=1e-3, atol=1e-3)
    assert 0 < len(calls) == len({weight.handle for _, weight in layers._packed.values()}), "each weight is read once"


def test_layers_of_one_input_are_one_product(monkeypatch):
    base = tiny(dtype=torch.float32)
    attention = base.model.layers[0].self_attn
    layers = PackedLayers()
    layers.refresh(base)
    product, calls = PackedWeight.__call__, []
    monkeypatch.setattr(PackedWeight, "__call__", lambda self, states: calls.append(1) or product(self, states))
    one, other = torch.randn(2, 1, 3, 32)
    with torch.no_grad():
        asked = [(layer, states) for layer in (attention.q_proj, attention.k_proj) for states in (one, other)]
        asked += [(attention.v_proj, other), (attention.q_proj, one), (attention.q_proj, one)]
        expected = [layer(states) for layer, states in asked]
        with layers.running():
            found = [layer(states) for layer, states in asked]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        calls.clear()
        with layers.running():
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
                layer(one)
    assert len(calls) == 1


def test_a_layer_of_a_shared_product_that_changes_counts():
    base = tiny(dtype=torch.float32)
    attention, states = base.model.layers[0].self_attn, torch.randn(1, 3, 32)
    layers = PackedLayers()
    layers.refresh(base)
    layers.release(base)
    before = [layer.weight.clone() for layer in (attention.k_proj, attention.v_proj)]
    layers.release(base)
    with torch.no_grad():
        attention.q_proj.weight.mul_(-1)
        expected = torch.nn.functional.linear(states, attention.q_proj.weight)
        layers.refresh(base)
        layers.release(base)
        with layers.running():
            torch.testing.assert_close(attention.q_proj(states), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(attention.k_proj.weight, before[0])
    assert torch.equal(attention.v_proj.weight, before[1])


def test_weights_that_float16_holds_are_packed_in_half_and_come_back_exactly():
    if not _sixteen_bits():
        pytest.skip("this processor has no products of 16-bit weights")
    weight = torch.randn(40, 24).bfloat16().float()
    weight[0, :4] = torch.tensor([3e-6, -2e-9, 1e-30, 0.0])
    assert HalfWeight.holds(weight)
    assert not HalfWeight.holds(torch.randn(40, 24))
    assert not HalfWeight.holds(weight * 1e6)
    assert not HalfWeight.holds(weight.double())
    half, bias = HalfWeight(weight, torch.ones(40)), torch.ones(40)
    states = torch.randn(2, 3, 24)
    expected = torch.nn.functional.linear(states, weight, bias)
    torch.testing.assert_close(half(states), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(half.dense(), weight)


def test_a_model_in_16_bits_writes_the_same_and_may_go_back(tmp_path):
    base = tiny(dtype=torch.bfloat16).float()
    base.save_pretrained(tmp_path)
    model = MedusaModel.from_base(tmp_path, num_heads=2, prepack="half")
    text = base.generate(prompt(), max_new_tokens=20, do_sample=False)
    kinds = []
    for prepack in ("half", True, "half"):
        model.prepack = prepack
        assert torch.equal(model.generate(prompt(), max_new_tokens=20, do_sample=False), text)
        weight = model.packed_layers._packed[model.base.lm_head][1]
        kinds.append(type(weight))
    assert kinds == [HalfWeight, PackedWeight, HalfWeight]
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in model.base.state_dict().items())


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
        torch.testing.assert_close(packed_heads(heads)(hidden, lm_head), heads(hidden, lm_head), rtol=1e-4, atol=1e-4)


def test_trained_heads_are_packed_anew():
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2)
    model.generate(prompt(), max_new_tokens=4)
    before = model.running_heads
    model.generate(prompt(), max_new_tokens=4)
    assert model.running_heads is before
    with torch.no_grad():
        model.heads.w2.mul_(2)
    model.generate(prompt(), max_new_tokens=4)
    assert model.running_heads is not before


def test_the_callers_model_is_left_as_it_was():
    base = tiny(dtype=torch.float32)
    modules, weights = dict(base.named_modules()), {name: p.data_ptr() for name, p in base.named_parameters()}
    state = {name: value.clone() for name, value in base.state_dict().items()}
    model = MedusaModel.from_base(base, num_heads=2)
    model.generate(prompt(), max_new_tokens=8)
    assert len(model.packed_layers) > 0
    assert dict(base.named_modules()) == modules
    assert {name: p.data_ptr() for name, p in base.named_parameters()} == weights
    assert base.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert not any(module._forward_pre_hooks or "forward" in vars(module) for module in base.modules())


@pytest.mark.parametrize("trace", [True, False])
def test_changed_weights_are_packed_anew(trace):
    """Also where a write leaves no trace but the values: adapters are merged through `.data`."""
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=2)
    before = model.generate(prompt(), max_new_tokens=20)
    weight = base.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        (weight if trace else weight.data).mul_(-1)
    changed = model.generate(prompt(), max_new_tokens=20)
    assert not torch.equal(changed, before)
    assert torch.equal(changed, base.generate(prompt(), max_new_tokens=20, do_sample=False))


def test_settings_and_hooks_of_the_base_count_after_packing():
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=2)
    model.generate(prompt(), max_new_tokens=20)
    layer = base.model.layers[0].mlp.down_proj
    handle = layer.register_forward_hook(lambda module, args, output: -output)
    steered = model.generate(prompt(), max_new_tokens=20)
    assert torch.equal(steered, base.generate(prompt(), max_new_tokens=20, do_sample=False))
    handle.remove()
    assert not torch.equal(steered, model.generate(prompt(), max_new_tokens=20))


def test_adapters_may_be_switched_after_packing():
    peft = pytest.importorskip("peft")
    base = tiny(dtype=torch.float32)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), base)
    model = MedusaModel.from_base(base, num_heads=2)
    adapted = model.generate(prompt(), max_new_tokens=20)
    for module in base.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.enable_adapters(False)
    plain = model.generate(prompt(), max_new_tokens=20)
    assert torch.equal(plain, base.generate(prompt(), max_new_tokens=20, do_sample=False))
    assert not torch.equal(plain, adapted)


def test_the_switch_and_what_cannot_be_packed():
    base = tiny(dtype=torch.float32)
    off = MedusaModel.from_base(base, num_heads=2, prepack=False)
    off.generate(prompt(), max_new_tokens=4)
    assert len(off.packed_layers) == 0
    assert not worth_packing(tiny(dtype=torch.float64))
    offloaded = tiny(dtype=torch.float32)
    for layer in offloaded.modules():
        layer.forward = layer.forward  # as accelerate does
    assert not worth_packing(offloaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_packed_or_not(dtype):
    model = MedusaModel.from_base(tiny(dtype=dtype), num_heads=2)
    assert model.generate(prompt(), max_new_tokens=5).shape == (1, 12)


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
    linear = [each for each in model.base.modules() if isinstance(each, nn.Linear)]
    return sum(map(_is_released, linear)), len(linear)


def test_a_model_the_library_loaded_holds_its_weights_once(owned):
    model, base = owned
    count, layers = released(model)
    assert count == layers > 0
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


def test_another_bias_is_packed_anew():
    layer = nn.Linear(16, 16)
    packed = PackedLayers()
    packed.refresh(layer)
    layer.bias.data = layer.bias.data + 100
    packed.refresh(layer)
    states = torch.randn(3, 16)
    expected = layer(states)
    with packed.running():
        torch.testing.assert_close(layer(states), expected)
