"""Packed weights: products, models that the library loaded, interrupts and threads."""

import copy
import gc
import pickle
import random
import signal
import threading
import time

import pytest
import torch
from models import ARCHITECTURES, prompt, tiny
from torch import nn

from medusa import MedusaConfig, MedusaHeads, MedusaModel
from medusa.core.heads import LogitRule
from medusa.runtime.packing import PackedLinear, PackedStack, Packing, is_packed, worth_packing
from medusa.runtime.products import ROWS, PackedWeight
from medusa.runtime.twin import twin

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="oneDNN is not in this torch"
)


def packed_twin(module, packing=None, owned=False):
    return twin(module, (packing or Packing()).refresh(module, owned))


@pytest.fixture
def products(monkeypatch):
    """The calls of products with packed weights."""
    product, calls = PackedWeight.__call__, []
    monkeypatch.setattr(
        PackedWeight, "__call__", lambda self, states: calls.append(self) or product(self, states)
    )
    return calls


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 40, 255, 256, 257, 700])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_equals_the_plain_one_up_to_rounding(rows, bias):
    linear = nn.Linear(24, 40, bias=bias)
    for states in (torch.randn(1, rows, 24), torch.randn(rows, 24), torch.randn(2, 1, rows, 24)):
        product = PackedWeight(linear.weight, linear.bias)(states)
        torch.testing.assert_close(product, linear(states), rtol=1e-5, atol=1e-5)
    assert PackedWeight(linear.weight)(torch.zeros(0, 24)).shape == (0, 40)


def test_products_have_few_row_counts(monkeypatch):
    """oneDNN keeps a kernel for each row count, so memory would grow with every prompt length."""
    multiply, counts = PackedWeight._multiply, set()
    monkeypatch.setattr(
        PackedWeight,
        "_multiply",
        lambda self, states: counts.add(states[..., 0].numel()) or multiply(self, states),
    )
    weight = PackedWeight(torch.randn(8, 4))
    for rows in range(1, 600):
        assert weight(torch.randn(1, rows, 4)).shape == (1, rows, 8)
    assert counts <= set(ROWS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_packed_model_computes_the_same(name, products):
    base = tiny(name, dtype=torch.float32, attention="eager")
    run = packed_twin(base)
    products.clear()
    with torch.inference_mode():
        plain = base(prompt(9)).logits
        assert not products
        packed = run(prompt(9)).logits
    torch.testing.assert_close(packed, plain, rtol=1e-3, atol=1e-3)
    assert 0 < len(products) == len({weight.handle for weight in products}), (
        "each weight is read once"
    )


def test_layers_with_the_same_input_run_as_one_product(products):
    base = tiny(dtype=torch.float32)
    attention = base.model.layers[0].self_attn
    run = packed_twin(base).model.layers[0].self_attn
    one, other = torch.randn(2, 1, 3, 32)
    names = [(name, states) for name in ("q_proj", "k_proj") for states in (one, other)]
    names += [("v_proj", other), ("q_proj", one), ("q_proj", one)]
    with torch.no_grad():
        expected = [getattr(attention, name)(states) for name, states in names]
        found = [getattr(run, name)(states) for name, states in names]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        products.clear()
        another = torch.randn(1, 3, 32)
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(run, name)(another)
    assert len(products) == 1


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_heads_equal_the_heads(num_layers, bias):
    heads = MedusaHeads(
        MedusaConfig(3, num_layers, 16, 24, bias=bias), LogitRule(0.5, 4.0), torch.randn(24)
    )
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    hidden, products = torch.randn(2, 16), PackedStack().refresh(heads.w2)
    with torch.no_grad():
        for first in (None, 2):
            packed = heads(hidden, None, first, products)
            torch.testing.assert_close(packed, heads(hidden, None, first), rtol=1e-4, atol=1e-4)


def test_trained_heads_are_packed_again():
    stack = torch.randn(2, 24, 16)
    packed = PackedStack()
    before = packed.refresh(stack)
    assert packed.refresh(stack) is before
    stack.data[1, 3, 2] += 1
    torch.testing.assert_close(packed.refresh(stack)[1].dense(), stack[1], rtol=0, atol=0)


def test_the_callers_model_stays_unchanged():
    base = tiny(dtype=torch.float32)
    modules, kinds = dict(base.named_modules()), [type(module) for module in base.modules()]
    own = {name: dict(vars(module)) for name, module in base.named_modules()}
    weights = {name: p.data_ptr() for name, p in base.named_parameters()}
    state = {name: value.clone() for name, value in base.state_dict().items()}
    model = MedusaModel.from_base(base, num_heads=2)
    model.generate(prompt(), max_new_tokens=8)
    assert dict(base.named_modules()) == modules
    assert [type(module) for module in base.modules()] == kinds
    for name, module in base.named_modules():
        assert vars(module).keys() == own[name].keys()
        assert all(
            value is own[name][key]
            for key, value in vars(module).items()
            if isinstance(value, dict)
        )
        assert not module._forward_pre_hooks
    assert {name: p.data_ptr() for name, p in base.named_parameters()} == weights
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())


def test_packing_can_be_turned_off_and_skips_unsupported_layers(products):
    base = tiny(dtype=torch.float32)
    MedusaModel.from_base(base, num_heads=2, prepack=False).generate(prompt(), max_new_tokens=4)
    assert not products
    assert not worth_packing(tiny(dtype=torch.float64))
    offloaded = tiny(dtype=torch.float32)
    for layer in offloaded.modules():
        layer.forward = layer.forward  # as accelerate does
    assert not worth_packing(offloaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_packed_or_not(dtype):
    model = MedusaModel.from_base(tiny(dtype=dtype), num_heads=2)
    assert model.generate(prompt(), max_new_tokens=5).shape == (1, 12)


# --- a model that the library loaded


@pytest.fixture
def owned(tmp_path):
    """A model that the library loaded, after its first answer, and a copy of its base model."""
    base = tiny(dtype=torch.float32)
    base.save_pretrained(tmp_path)
    model = MedusaModel.from_base(tmp_path, num_heads=2)
    model.base.generation_config.eos_token_id = None
    model.generate(prompt(), max_new_tokens=4)
    return model, base


def packed_count(model):
    linear = [each for each in model.base.modules() if isinstance(each, nn.Linear)]
    return sum(map(is_packed, linear)), len(linear)


def test_a_model_that_the_library_loaded_stores_its_weights_once(owned):
    model, base = owned
    count, layers = packed_count(model)
    assert count == layers > 0
    kept = sum(
        p.numel()
        for each in model.base.modules()
        for p in dict.values(each._parameters)
        if p is not None
    )
    assert kept < 0.3 * base.num_parameters()


def test_neither_requests_nor_the_base_alone_unpack_weights(owned, monkeypatch):
    model, base = owned
    monkeypatch.setattr(PackedWeight, "dense", lambda self: pytest.fail("unpacked"))
    for capture in (None, False, True):
        model.capture = capture
        text = model.generate(prompt(), max_new_tokens=6)
    model.generate(prompt(), max_new_tokens=6, do_sample=True)
    assert torch.equal(text, model.base.generate(prompt(), max_new_tokens=6, do_sample=False))
    assert torch.equal(text, base.generate(prompt(), max_new_tokens=6, do_sample=False))


def test_packed_weights_are_restored_exactly(owned, tmp_path):
    model, base = owned
    state = model.base.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert packed_count(model)[0] == 0
    text = model.generate(prompt(), max_new_tokens=20)
    assert packed_count(model)[0] == 0, "somebody holds them"
    del state
    gc.collect()
    assert torch.equal(text, model.generate(prompt(), max_new_tokens=20))
    assert packed_count(model)[0] == packed_count(model)[1]
    assert torch.equal(text, base.generate(prompt(), max_new_tokens=20, do_sample=False))
    model.base.save_pretrained(tmp_path / "again")
    assert model.base.num_parameters() == base.num_parameters()


def test_a_weight_that_other_code_holds_may_change_at_any_time(owned):
    model, base = owned
    mine = model.base.model.layers[0].mlp.down_proj.weight
    for factor in (-1, 2):
        with torch.no_grad():
            for weight in (mine, base.model.layers[0].mlp.down_proj.weight):
                weight.mul_(factor)
        text = model.generate(prompt(), max_new_tokens=20)
        assert torch.equal(text, base.generate(prompt(), max_new_tokens=20, do_sample=False))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
@pytest.mark.parametrize("owns", [True, False])
def test_models_can_be_copied_and_pickled_after_an_answer(copied, owns, tmp_path):
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=2)
    model.owns_base = owns
    text = model.generate(prompt(), max_new_tokens=20)
    twin_model = copied(model)
    assert torch.equal(twin_model.generate(prompt(), max_new_tokens=20), text)
    assert torch.equal(model.generate(prompt(), max_new_tokens=20), text)
    assert type(copied(model.base).lm_head) is nn.Linear
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded.generate(prompt(), max_new_tokens=20), text)


def test_packed_models_can_be_moved(owned):
    model, base = owned
    model.base.to(torch.float64)
    torch.testing.assert_close(model.base(prompt()).logits, base.double()(prompt()).logits)


def test_autocast_and_heads_of_another_precision(owned):
    for model in (owned[0], MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2)):
        with torch.autocast("cpu", torch.bfloat16):
            assert model.generate(prompt(), max_new_tokens=8).shape == (1, 15)
        model.base.to(torch.bfloat16)
        expected = model.base.generate(prompt(), max_new_tokens=4, do_sample=False)
        assert model.generate(prompt(), max_new_tokens=4).shape == expected.shape
    shared = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2, own_lm_head=False)
    shared.base.to(torch.bfloat16)
    assert shared.generate(prompt(), max_new_tokens=8).shape == (1, 15)


# --- interrupts and threads


@pytest.fixture
def alarms():
    """Make alarms raise KeyboardInterrupt during a test."""
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.slow
@pytest.mark.usefixtures("alarms")
@pytest.mark.parametrize("prepack", [True, "half", False])
@pytest.mark.parametrize("owns", [True, False])
def test_interrupts_at_any_moment_do_not_damage_the_model(prepack, owns):
    base = tiny(dtype=torch.bfloat16).float()
    reference = {name: value.clone() for name, value in base.state_dict().items()}
    model = MedusaModel.from_base(base, num_heads=2, prepack=prepack)
    model.owns_base = owns
    started = time.perf_counter()
    text = model.generate(prompt(), max_new_tokens=12)
    took = time.perf_counter() - started
    moments, interrupted = random.Random(0), 0
    for _ in range(60):
        if moments.random() < 0.3:
            base.model.layers[0].mlp.up_proj.weight  # noqa: B018 (asks for a packed weight)
        try:
            signal.setitimer(signal.ITIMER_REAL, max(1e-5, moments.random() * took))
            model.generate(prompt(), max_new_tokens=12)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        assert (
            torch.is_grad_enabled()
        )  # an interrupt in `no_grad` could leave gradients off for good
        assert not torch.is_inference_mode_enabled()
        assert not any(
            module._forward_pre_hooks or "forward" in vars(module) for module in base.modules()
        )
    assert interrupted > 10
    assert torch.equal(model.generate(prompt(), max_new_tokens=12), text)
    assert torch.equal(base.generate(prompt(), max_new_tokens=12, do_sample=False), text)
    assert all(torch.equal(value, reference[name]) for name, value in base.state_dict().items())
    assert base.state_dict().keys() == reference.keys()


@pytest.mark.parametrize("options", [{}, {"prepack": False}, {"capture": True}], ids=str)
@pytest.mark.parametrize("owns", [True, False])
def test_concurrent_threads_get_the_same_text_as_a_single_one(options, owns):
    base = tiny(dtype=torch.float32)
    prompts = [prompt(5 + seed, seed) for seed in range(6)]
    expected = [
        base.generate(each, max_new_tokens=15, do_sample=False).tolist() for each in prompts
    ]
    model = MedusaModel.from_base(base, num_heads=2, prepack=options.get("prepack"))
    model.owns_base, model.capture = owns, options.get("capture")
    found = {}

    def answer(number):
        for _ in range(2):
            found[number] = model.generate(prompts[number], max_new_tokens=15).tolist()
            if number == 0:
                base.state_dict()

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found.get(number) for number in range(6)] == expected
    assert base.generate(prompts[0], max_new_tokens=15, do_sample=False).tolist() == expected[0]


def test_packing_in_place_keeps_a_layers_name_and_settings():
    base = tiny(dtype=torch.float32)
    layer = base.model.layers[0].mlp.down_proj
    layer.mark = "mine"
    Packing().refresh(base, owned=True)
    assert isinstance(layer, PackedLinear)
    assert base.model.layers[0].mlp.down_proj is layer
    assert layer.mark == "mine"
    assert (layer.in_features, layer.out_features) == (48, 32)
