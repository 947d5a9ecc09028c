"""PEFT adapters of the base model: texts follow the adapter that is active at each request."""

import pytest
import torch
from models import ScriptedHeads, tiny, varied_prompt
from peft_versions import own_methods

from medusa import CandidateTree, MedusaModel

peft = pytest.importorskip("peft", reason="the extra 'train' is not installed")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated",
    "ignore:Already found a .peft_config. attribute",
    "ignore:Adapter first was active which is now deleted",
)
KINDS = ["llama", "mistral", "qwen2"]
TEXT = {"max_new_tokens": 16, "do_sample": False}
TREE = CandidateTree.dense([2, 2])


def lora(seed, **options):
    """A configuration of an adapter that changes the text much."""
    torch.manual_seed(seed)
    options = {"target_modules": ["q_proj", "down_proj", "lm_head"], **options}
    return peft.LoraConfig(r=2, lora_alpha=64, init_lora_weights=False, **options)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=["callers", "owned", "captured"])
def models(request, kind):
    """A Medusa model that packs its weights, and a reference that only transformers runs."""
    model = MedusaModel.from_base(tiny(kind, torch.float32), num_heads=3)
    model.owns_base, model.capture = request.param == "owned", request.param == "captured"
    return model, tiny(kind, torch.float32)


def texts(model, reference, kind):
    """The text of both models, which is checked to be equal. The heads know it."""
    expected = reference.generate(varied_prompt(kind), **TEXT)
    other = MedusaModel.from_base(reference, num_heads=3, prepack=False)
    with torch.inference_mode():
        model.heads = ScriptedHeads(other, [[*expected[0].tolist(), 1, 1]], 0.7)
    given = model.generate(varied_prompt(kind), tree=TREE, return_dict_in_generate=True, **TEXT)
    assert given.sequences.tolist() == expected.tolist()
    assert given.stats.acceleration_rate > 1.1
    return expected[0].tolist()


def wrapped(models, config):
    """Both base models with the adapter of a configuration."""
    model, reference = models
    found = []
    for base in (model.base, reference):
        torch.manual_seed(7)
        found.append(peft.get_peft_model(base, config()))
    return found


def test_an_adapter_that_is_attached_switched_and_merged_after_loading(models, kind):
    plain = texts(*models, kind)
    both = wrapped(models, lambda: lora(1))
    first = texts(*models, kind)
    for each in both:
        torch.manual_seed(8)
        each.add_adapter("second", lora(2))
        each.set_adapter("second")
    second = texts(*models, kind)
    assert len({tuple(each) for each in (plain, first, second)}) == 3
    for name, expected in (("default", first), ("second", second), ("default", first)):
        for each in both:
            each.set_adapter(name)
        assert texts(*models, kind) == expected
    with both[0].disable_adapter(), both[1].disable_adapter():
        assert texts(*models, kind) == plain
    assert texts(*models, kind) == first
    for change in ("merge_adapter", "unmerge_adapter", "merge_and_unload"):
        for each in both:
            getattr(each, change)()
        assert texts(*models, kind) == first


def test_an_adapter_that_is_unloaded_leaves_the_base_model(models, kind):
    plain = texts(*models, kind)
    both = wrapped(models, lambda: lora(1))
    assert texts(*models, kind) != plain
    for each in both:
        each.unload()
    assert texts(*models, kind) == plain


@own_methods
def test_adapters_through_the_base_models_own_methods(models, kind):
    plain, found = texts(*models, kind), {}
    bases = [models[0].base, models[1]]
    for base in bases:
        base.add_adapter(lora(1), "first")
        base.add_adapter(lora(2), "second")
    for name in ("first", "second"):
        for base in bases:
            base.set_adapter(name)
        found[name] = texts(*models, kind)
    assert len({tuple(each) for each in (plain, *found.values())}) == 3
    for base in bases:
        base.disable_adapters()
    assert texts(*models, kind) == plain
    for base in bases:
        base.enable_adapters()
        base.set_adapter("first")
    assert texts(*models, kind) == found["first"]
    for base in bases:
        base.delete_adapter("first")
        base.set_adapter("second")
    assert texts(*models, kind) == found["second"]


def test_an_adapter_that_was_attached_before(kind):
    bases = [tiny(kind, torch.float32) for _ in range(2)]
    both = [peft.get_peft_model(each, lora(1)) for each in bases]
    model = MedusaModel.from_base(both[0].get_base_model(), num_heads=3)
    adapted = texts(model, bases[1], kind)
    for each in both:
        each.merge_and_unload()
    assert texts(model, bases[1], kind) == adapted


OTHERS = {
    "dora": lambda: lora(1, use_dora=True),
    "embeddings": lambda: lora(1, target_modules=["embed_tokens", "v_proj"]),
    "own lm_head": lambda: lora(1, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "own embeddings": lambda: lora(1, target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "ia3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    ),
}


@pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
def test_other_kinds_of_adapters(models, kind, config):
    plain = texts(*models, kind)
    both = wrapped(models, config)
    for each in both:
        torch.manual_seed(9)
        for name, parameter in each.named_parameters():
            if "modules_to_save" in name:
                parameter.data.add_(torch.randn(parameter.shape))
    assert texts(*models, kind) != plain
    with both[0].disable_adapter(), both[1].disable_adapter():
        assert texts(*models, kind) == plain


def test_a_peft_model_decodes_through_custom_generate(models, kind):
    model, ids = models[0], varied_prompt(kind)
    both = wrapped(models, lambda: lora(1))
    call = {"custom_generate": model.custom_generate, "tree": TREE}
    given = both[0].generate(input_ids=ids, **call, **TEXT)
    assert given.tolist() == both[1].generate(input_ids=ids, **TEXT).tolist()
    assert given.tolist() != tiny(kind, torch.float32).generate(ids, **TEXT).tolist()


@own_methods
def test_requests_of_one_engine_follow_the_adapter(models, kind):
    """A request that begins after a switch gets the new adapter, without `generate`."""
    model, reference = models
    for base in (model.base, reference):
        base.add_adapter(lora(1), "first")
        base.add_adapter(lora(2), "second")
    for name in ("first", "second", "first"):
        for base in (model.base, reference):
            base.set_adapter(name)
        steps = model.steps(varied_prompt(kind), tree=TREE, **TEXT).events()
        tokens = [token for step in steps for token in step.tokens]
        assert tokens == reference.generate(varied_prompt(kind), **TEXT)[0, -16:].tolist()


def test_adapted_embeddings_are_no_table_of_positions(kind):
    """Some models have as many tokens as positions."""
    base = tiny(kind, vocab_size=256)
    model = MedusaModel.from_base(base, num_heads=2)
    peft.get_peft_model(base, lora(1, target_modules=["embed_tokens"]))
    again = MedusaModel.from_base(base, num_heads=2)
    assert model.positions.table is again.positions.table is None
