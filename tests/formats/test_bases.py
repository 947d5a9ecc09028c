"""Heads store the name of their base model, and check that it still is that model."""

import json
import os
import shutil
import warnings

import pytest
import torch
from models import ARCHITECTURES, prompt, tiny
from peft_versions import own_methods
from torch import nn
from transformers import AutoModelForCausalLM

from medusa import MedusaModel
from medusa.formats.names import ADAPTER, CONFIG

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated"
)  # peft's

NEW = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model in `base`, an adapter for it in `lora`, and another model in `other`."""
    place = tmp_path_factory.mktemp("models")
    tiny(dtype=torch.float32).save_pretrained(place / "base")
    tiny(dtype=torch.float32, seed=5).save_pretrained(place / "other")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(place / "base"), config())
    adapted.save_pretrained(place / "lora")
    return place


def config(**changes):
    torch.manual_seed(2)
    return peft.LoraConfig(
        r=2,
        lora_alpha=32,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
        **changes,
    )


def base_named(heads):
    return json.loads((heads / CONFIG).read_text())["base_model_name_or_path"]


# --- where the base model is


@pytest.mark.parametrize("name", ["./base", "base", "../models/base", "ABSOLUTE", "~/models/base"])
def test_a_base_folder_is_found_from_any_working_directory(folder, tmp_path, monkeypatch, name):
    work = tmp_path / "models"
    shutil.copytree(folder / "base", work / "base")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(work)
    model = MedusaModel.from_base(str(work / "base") if name == "ABSOLUTE" else name, num_heads=2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.save_pretrained("deep/heads")
    assert base_named(tmp_path / "elsewhere/deep/heads") == "../../../models/base"
    text = model.generate(prompt(), **NEW)
    monkeypatch.chdir("/")
    assert torch.equal(
        MedusaModel.from_pretrained(tmp_path / "elsewhere/deep/heads").generate(prompt(), **NEW),
        text,
    )


def test_heads_and_base_may_move_together(folder, tmp_path):
    shutil.copytree(folder / "base", tmp_path / "one" / "base")
    MedusaModel.from_base(tmp_path / "one" / "base", 2).save_pretrained(tmp_path / "one" / "heads")
    os.rename(tmp_path / "one", tmp_path / "two")
    assert MedusaModel.from_pretrained(tmp_path / "two" / "heads").base.config.vocab_size == 61


def test_a_folder_named_like_a_hub_id_is_not_looked_up_on_the_hub(folder, tmp_path, monkeypatch):
    """From another directory, a repository of that name on the hub must not be loaded."""
    shutil.copytree(folder / "base", tmp_path / "owner" / "base")
    monkeypatch.chdir(tmp_path)
    MedusaModel.from_base("owner/base", 2).save_pretrained("heads")
    assert base_named(tmp_path / "heads").startswith("../")
    (tmp_path / "moved").mkdir()
    os.rename(tmp_path / "heads", tmp_path / "moved" / "heads")
    with pytest.raises(FileNotFoundError, match="which is not there"):
        MedusaModel.from_pretrained(tmp_path / "moved" / "heads")


def test_heads_loaded_and_saved_elsewhere_name_the_same_base(folder, tmp_path):
    MedusaModel.from_base(folder / "base", 2).save_pretrained(tmp_path / "heads")
    again = MedusaModel.from_pretrained(tmp_path / "heads")
    again.save_pretrained(tmp_path / "a" / "b" / "heads")
    assert (
        tmp_path / "a" / "b" / "heads" / base_named(tmp_path / "a" / "b" / "heads")
    ).resolve() == folder / "base"
    assert torch.equal(
        MedusaModel.from_pretrained(tmp_path / "a" / "b" / "heads").generate(prompt(), **NEW),
        again.generate(prompt(), **NEW),
    )


# --- adapters are saved with the heads


def from_adapter_folder(folder):
    return MedusaModel.from_base(folder / "lora", 2)


def from_loaded_adapter(folder):
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    base.load_adapter(folder / "lora")
    return MedusaModel.from_base(base, 2)


def from_peft_model(folder):
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    return MedusaModel.from_base(peft.get_peft_model(base, config()).get_base_model(), 2)


def attached_later(folder):
    model = MedusaModel.from_base(folder / "base", 2)
    model.base.add_adapter(config())
    return model


@pytest.mark.parametrize(
    "made",
    [
        from_adapter_folder,
        from_loaded_adapter,
        from_peft_model,
        pytest.param(attached_later, marks=own_methods),
    ],
)
def test_an_adapter_is_saved_with_the_heads(folder, tmp_path, made):
    model = made(folder)
    text = model.base.generate(prompt(), **NEW)
    plain = AutoModelForCausalLM.from_pretrained(folder / "base").generate(prompt(), **NEW)
    assert not torch.equal(text, plain)
    model.save_pretrained(tmp_path / "heads")
    assert (tmp_path / "heads" / ADAPTER / "adapter_model.safetensors").is_file()
    again = MedusaModel.from_pretrained(tmp_path / "heads")
    assert torch.equal(again.generate(prompt(), **NEW), text)
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(
        MedusaModel.from_pretrained(tmp_path / "again").generate(prompt(), **NEW), text
    )


def test_an_adapter_that_was_scaled_after_training_is_not_saved(folder, tmp_path):
    model = from_loaded_adapter(folder)
    for layer in model.base.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(3)
    with pytest.raises(ValueError, match=r"adapter default was scaled .*merge_and_unload"):
        model.save_pretrained(tmp_path / "heads")
    assert not (tmp_path / "heads" / CONFIG).exists()


@own_methods
def test_a_disabled_adapter_is_not_saved(folder, tmp_path):
    model = from_loaded_adapter(folder)
    model.base.disable_adapters()
    model.save_pretrained(tmp_path)
    assert not (tmp_path / ADAPTER).exists()


# --- base models that have changed


def merged(model, folder):
    base = peft.get_peft_model(model.base, config()).merge_and_unload()
    assert base is model.base


def edited(model, folder):
    model.base.model.layers[1].mlp.up_proj.weight.data[3, 4] += 1


def norm_edited(model, folder):
    model.base.model.norm.weight.data[5] *= 1.5


def layer_removed(model, folder):
    model.base.model.layers = model.base.model.layers[:1]
    model.base.config.num_hidden_layers = 1


def layer_replaced(model, folder):
    other = nn.Linear(32, 61, bias=False)
    model.base.lm_head = other


@pytest.mark.parametrize("change", [merged, edited, norm_edited, layer_removed, layer_replaced])
def test_heads_of_a_changed_base_cannot_be_saved_with_its_name(folder, tmp_path, change):
    model = MedusaModel.from_base(folder / "base", 2)
    change(model, folder)
    with pytest.raises(ValueError, match=r"base\.save_pretrained"):
        model.save_pretrained(tmp_path / "heads")
    assert not (tmp_path / "heads" / CONFIG).exists()
    model.base.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "heads", base="../own")
    text = model.base.generate(prompt(), **NEW)
    assert torch.equal(
        MedusaModel.from_pretrained(tmp_path / "heads").base.generate(prompt(), **NEW), text
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_unchanged_base_keeps_its_name_and_a_changed_one_does_not(tmp_path, name):
    """Many architectures are stored under other names than their parameters have."""
    tiny(name, torch.float32, "eager").save_pretrained(tmp_path / "base")
    model = MedusaModel.from_base(tmp_path / "base", 1, own_lm_head=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.save_pretrained(tmp_path / "heads")
    for weight in (model.lm_head.weight, list(model.base.parameters())[-2]):
        before = weight.detach().clone()
        weight.data.add_(0.5)
        with pytest.raises(ValueError, match="other weights in"):
            model.save_pretrained(tmp_path / "heads")
        weight.data.copy_(before)


def test_the_error_names_a_changed_configuration_field(folder, tmp_path):
    model = MedusaModel.from_base(folder / "base", 2)
    model.base.config.rope_parameters = {"rope_type": "default", "rope_theta": 5.0}
    with pytest.raises(ValueError, match="another rope_parameters"):
        model.save_pretrained(tmp_path)


def test_an_adapter_on_an_edited_base_is_refused(folder, tmp_path):
    model = from_adapter_folder(folder)
    model.base.model.norm.weight.data[5] *= 1.5
    with pytest.raises(ValueError, match=r"base\.save_pretrained"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_base_counts_as_unchanged(folder, tmp_path, dtype):
    model = MedusaModel.from_base(folder / "base", 2, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path / "loaded")
        model.base.to(torch.float32)
        model.heads.to(torch.float32)
        model.save_pretrained(tmp_path / "cast")


def test_decoding_and_packing_do_not_change_the_base(folder, tmp_path):
    model = MedusaModel.from_base(folder / "base", 2)
    model.generate(prompt(), **NEW)
    model.save_pretrained(tmp_path)
    tied = tiny(dtype=torch.float32, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "tied")
    model = MedusaModel.from_base(tmp_path / "tied", 2)
    model.generate(prompt(), **NEW)
    model.save_pretrained(tmp_path / "of-tied")


def test_a_base_without_a_name_is_saved_without_one(tmp_path):
    MedusaModel.from_base(tiny(dtype=torch.float32), 2).save_pretrained(tmp_path)
    assert base_named(tmp_path) == "N/A"
