import pytest
import torch
from models import ARCHITECTURES, prompt, tiny
from torch import nn

from medusa import MedusaModel
from medusa.backends import PackedLinear, is_stale, packed, worth_packing

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this torch")


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_the_plain_one_up_to_rounding(rows, bias):
    linear = nn.Linear(24, 40, bias=bias)
    states = torch.randn(2, rows, 24)
    torch.testing.assert_close(PackedLinear(linear)(states), linear(states), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_packed_model_computes_the_same(name):
    base = tiny(name, dtype=torch.float32, attention="eager")
    shadow = packed(base)
    assert any(isinstance(module, PackedLinear) for module in shadow.modules())
    with torch.inference_mode():
        torch.testing.assert_close(shadow(prompt(9)).logits, base(prompt(9)).logits, rtol=1e-3, atol=1e-3)


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
