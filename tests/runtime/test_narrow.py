"""Packed weights in fewer bits: what they hold, their products, and models that run on them."""

import pytest
import torch
from models import prompt, tiny
from torch import nn
from torch.nn import functional as F

from medusa import MedusaModel
from medusa.core.engine import PLAIN
from medusa.runtime.narrow import (
    GROUP,
    LARGEST_ERROR,
    HalfWeight,
    Int4Weight,
    dequantised,
    four_bits,
    quantised,
    sixteen_bits,
)
from medusa.runtime.products import PackedWeight

needs_four_bits = pytest.mark.skipif(not four_bits(), reason="no 4-bit products on this machine")


def stored_in_4_bits(features, inputs):
    """A weight as a Q4_1 file holds it: numbers from 0 to 15, steps and least values in float16."""
    numbers = torch.randint(0, 16, (features, inputs // GROUP, GROUP)).float()
    numbers[..., :2] = torch.tensor([0.0, 15.0])  # both ends occur in each group
    steps, least = (torch.rand(2, features, inputs // GROUP) + 0.1).half().float()
    return ((numbers * steps[..., None] - least[..., None] * 8).flatten(1) / 40).bfloat16()


def test_weights_that_float16_represents_are_packed_in_half_and_restored_exactly():
    if not sixteen_bits():
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


@needs_four_bits
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_in_4_bits_equals_that_of_the_rounded_weight(dtype, bias):
    weight = stored_in_4_bits(48, 96).to(dtype)
    bias = torch.randn(48, dtype=dtype) if bias else None
    narrow, states = Int4Weight(weight, bias), torch.randn(2, 5, 96, dtype=dtype)
    found = narrow(states)
    assert found.dtype == dtype
    assert found.shape == (2, 5, 48)
    reference = dequantised(*quantised(weight.float()))
    expected = F.linear(
        states.bfloat16().float(), reference, None if bias is None else bias.float()
    )
    assert (found.float() - expected).norm() <= 2 * LARGEST_ERROR * expected.norm()
    assert narrow(states[:, :0]).shape == (2, 0, 48)


@pytest.mark.parametrize("kind", [PackedWeight, HalfWeight, Int4Weight])
def test_a_single_vector_is_multiplied(kind):
    weight, states = stored_in_4_bits(48, 96).float(), torch.randn(3, 96)
    if kind is not PackedWeight and not kind.holds(weight):
        pytest.skip("this processor has no such products")
    product = kind(weight)
    torch.testing.assert_close(product(states[0]), product(states)[0])


@needs_four_bits
def test_a_row_in_4_bits_does_not_depend_on_the_others():
    narrow, states = Int4Weight(stored_in_4_bits(64, 128)), torch.randn(40, 128)
    whole = narrow(states)
    for rows in range(1, 40):
        assert torch.equal(narrow(states[:rows]), whole[:rows])


@needs_four_bits
def test_4_bits_hold_only_weights_that_were_stored_so():
    weight = stored_in_4_bits(32, 64)
    assert Int4Weight.holds(weight)
    assert Int4Weight.holds(weight.float())
    assert Int4Weight.holds(torch.zeros(16, 32))
    assert not Int4Weight.holds(torch.randn(32, 64))
    assert not Int4Weight.holds(weight[:31])
    assert not Int4Weight.holds(weight[:, :40])


@needs_four_bits
def test_a_weight_that_is_packed_in_4_bits_again_and_again_hardly_changes():
    weight = stored_in_4_bits(32, 64)
    packed = weight
    for _ in range(10):
        assert Int4Weight.holds(packed)
        packed = Int4Weight(packed).dense()
        assert (packed - weight).norm() <= LARGEST_ERROR * weight.norm()


def test_16_bit_packing_gives_the_same_text_and_can_be_turned_off(tmp_path):
    base = tiny(dtype=torch.bfloat16).float()
    base.save_pretrained(tmp_path)
    model = MedusaModel.from_base(tmp_path, num_heads=2, prepack="half")
    text = base.generate(prompt(), max_new_tokens=20, do_sample=False)
    kinds = []
    for prepack in ("half", True, "half"):
        model.prepack = prepack
        assert torch.equal(model.generate(prompt(), max_new_tokens=20, do_sample=False), text)
        kinds.append(type(model.base.lm_head.packed))
    assert kinds == [HalfWeight, PackedWeight, HalfWeight]
    assert all(
        torch.equal(value, base.state_dict()[name])
        for name, value in model.base.state_dict().items()
    )


@needs_four_bits
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_in_4_bits_keeps_its_text(dtype, compiled, tmp_path):
    base = tiny(dtype=torch.float32, intermediate_size=64)
    with torch.no_grad():
        for layer in base.model.layers.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(stored_in_4_bits(*layer.weight.shape))
    base.to(dtype).save_pretrained(tmp_path)
    model = MedusaModel.from_base(tmp_path, num_heads=2, prepack="int4", compiled=compiled)
    text = model.generate(prompt(), tree=PLAIN, max_new_tokens=30, do_sample=False)
    assert torch.equal(model.generate(prompt(), max_new_tokens=30, do_sample=False), text)
    if not compiled:
        layer = model.base.model.layers[0].mlp
        assert type(layer.down_proj.packed) is Int4Weight
        assert type(layer.gate_proj.packed.share.weight) is Int4Weight
        assert not isinstance(model.base.lm_head.packed, Int4Weight)
    for name, value in model.base.state_dict().items():
        error = (value - base.state_dict()[name]).float().norm()
        assert error <= LARGEST_ERROR * base.state_dict()[name].float().norm(), name
