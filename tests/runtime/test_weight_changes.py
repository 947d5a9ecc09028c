"""Every change of a base model takes effect after its layers were packed."""

import pytest
import torch
from models import prompt, tiny
from torch import nn

from medusa import MedusaModel

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this torch"
)


def at_one_value(base):
    base.model.layers[1].mlp.up_proj.weight.data[5, 7] += 30


def in_place(base):
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.mul_(-1)


def two_rows_swapped(base):
    weight = base.lm_head.weight.data
    weight[[9, 34]] = weight[[34, 9]]


def biases(base):
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(base.model.layers[0].self_attn, name).bias.data.add_(3.0)


def one_bias_in_place(base):
    with torch.no_grad():
        base.model.layers[0].self_attn.v_proj.bias[0] += 50


def norms(base):
    base.model.layers[0].input_layernorm.weight.data.mul_(-2)


def another_state(base):
    base.load_state_dict({name: -value for name, value in base.state_dict().items()})


def assigned_state(base):
    base.load_state_dict({name: -value for name, value in base.state_dict().items()}, assign=True)


def another_parameter(base):
    base.lm_head.weight = nn.Parameter(-base.lm_head.weight.detach())


def views_held_before(base):
    for view in base.held.values():
        view.mul_(-1)


def half_precision_and_back(base):
    base.to(torch.float16).to(torch.float32)


def wrapped(base):
    inner = nn.Sequential(base.model.layers[0].mlp.down_proj, nn.Linear(32, 32))
    with torch.no_grad():
        nn.init.eye_(inner[1].weight).mul_(-1)
        nn.init.zeros_(inner[1].bias)
    base.model.layers[0].mlp.down_proj = inner


def optimised(base):
    optimizer = torch.optim.SGD(
        [each for name, each in base.named_parameters() if "bias" in name], lr=30.0
    )
    for _ in range(3):
        base(prompt(), labels=prompt()).loss.backward()
        optimizer.step()


def adapted_and_merged(base):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_alpha=64
    )
    peft.get_peft_model(base, config).merge_and_unload()


CHANGES = [
    at_one_value,
    in_place,
    two_rows_swapped,
    biases,
    one_bias_in_place,
    norms,
    another_state,
    assigned_state,
    another_parameter,
    views_held_before,
    half_precision_and_back,
    wrapped,
    optimised,
    adapted_and_merged,
]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's
@pytest.mark.parametrize("owned", [False, True], ids=["callers", "owned"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_every_change_of_the_base_takes_effect(change, owned):
    model, reference = (
        MedusaModel.from_base(tiny("qwen2", dtype=torch.float32), num_heads=2),
        tiny("qwen2", dtype=torch.float32),
    )
    model.owns_base = owned
    with torch.no_grad():
        for base in (model.base, reference):
            for parameter in base.parameters():
                if parameter.ndim == 1:
                    parameter.add_(
                        torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                    )
    for _ in range(2):
        before = model.generate(prompt(), max_new_tokens=20)
    for base in (model.base, reference):
        if change is views_held_before:
            base.held = {name: value for name, value in base.state_dict().items() if "proj" in name}
            model.generate(prompt(), max_new_tokens=2)
        change(base)
    for _ in range(2):
        changed = model.generate(prompt(), max_new_tokens=20)
        assert torch.equal(
            changed, reference.generate(prompt(), max_new_tokens=20, do_sample=False)
        )
    assert change is half_precision_and_back or not torch.equal(changed, before)


def test_settings_and_hooks_of_the_base_take_effect_after_packing():
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=2)
    model.generate(prompt(), max_new_tokens=20)
    for layer in (
        base.model.layers[0].mlp.down_proj,
        base.model.layers[0].mlp,
        base.lm_head,
        base.model.norm,
    ):
        handle = layer.register_forward_hook(lambda module, args, output: -output)
        steered = model.generate(prompt(), max_new_tokens=20)
        assert torch.equal(steered, base.generate(prompt(), max_new_tokens=20, do_sample=False))
        handle.remove()
        assert not torch.equal(steered, model.generate(prompt(), max_new_tokens=20))


def test_adapters_may_be_switched_after_packing():
    peft = pytest.importorskip("peft")
    base = tiny(dtype=torch.float32)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, base)
    model = MedusaModel.from_base(base, num_heads=2)
    adapted = model.generate(prompt(), max_new_tokens=20)
    assert torch.equal(adapted, base.generate(prompt(), max_new_tokens=20, do_sample=False))
    for module in base.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.enable_adapters(False)
    plain = model.generate(prompt(), max_new_tokens=20)
    assert torch.equal(plain, base.generate(prompt(), max_new_tokens=20, do_sample=False))
    assert not torch.equal(plain, adapted)
