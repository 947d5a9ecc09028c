"""Names of heads and base models, and formats of heads that are not supported yet."""

import json

import pytest
import torch
from models import publish, tiny
from safetensors.torch import load_file, save_file

from medusa import MedusaModel
from medusa.formats.names import find_heads
from medusa.training import Source


@pytest.fixture
def whole(tmp_path):
    """A folder of a whole model with Medusa heads inside, in one file."""
    folder = tmp_path / "whole"
    tiny(dtype=torch.float32).save_pretrained(folder)
    named = load_file(folder / "model.safetensors")
    named["medusa_head.0.0.linear.weight"] = torch.zeros(32, 32)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def in_one_file(folder):
    pass


def in_shards(folder):
    named = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = dict.fromkeys(named, "model-00001-of-00001.safetensors")
    save_file(named, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_in_shards(folder):
    named = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(named, folder / "pytorch_model-00001-of-00001.bin")
    files = dict.fromkeys(named, "pytorch_model-00001-of-00001.bin")
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )


FORMS = [in_one_file, in_shards, pickled, pickled_in_shards]


@pytest.mark.parametrize("form", FORMS)
def test_heads_inside_a_whole_model_are_refused(whole, form, tmp_path):
    form(whole)
    for use in (
        lambda: find_heads(whole),
        lambda: MedusaModel.from_base(whole),
        lambda: MedusaModel.from_pretrained(whole),
        lambda: Source(str(whole), "data.jsonl").base,
    ):
        with pytest.raises(
            ValueError, match=r"whole model with Medusa heads inside \(medusa_head\.0"
        ):
            use()


@pytest.mark.parametrize("form", FORMS)
def test_heads_inside_a_whole_model_on_the_hub_are_refused(whole, form, tmp_path):
    form(whole)
    publish(whole, tmp_path / "hub", "owner/whole")
    with pytest.raises(ValueError, match="whole model with Medusa heads inside"):
        find_heads("owner/whole", cache_dir=tmp_path / "hub", local_files_only=True)


def test_pickled_heads_are_refused(tmp_path):
    folder = tmp_path / "heads"
    folder.mkdir()
    torch.save({"0.0.linear.weight": torch.zeros(32, 32)}, folder / "medusa_lm_head.pt")
    (folder / "config.json").write_text(
        '{"model_type": "llama", "base_model_name_or_path": "lmsys/vicuna"}'
    )
    publish(folder, tmp_path / "hub", "owner/heads")
    for use in (
        lambda: find_heads(folder),
        lambda: MedusaModel.from_base(folder),
        lambda: MedusaModel.from_pretrained(folder),
        lambda: Source(str(folder), "data.jsonl").base,
        lambda: find_heads("owner/heads", cache_dir=tmp_path / "hub", local_files_only=True),
    ):
        with pytest.raises(
            ValueError, match=r"authors' format \(medusa_lm_head\.pt\), which is not read yet"
        ):
            use()


def test_heads_and_base_models_are_distinguished(tmp_path):
    tiny(dtype=torch.float32).save_pretrained(tmp_path / "base")
    MedusaModel.from_base(tmp_path / "base", 2).save_pretrained(tmp_path / "heads")
    assert find_heads(tmp_path / "base") is None
    with pytest.raises(ValueError, match="holds Medusa heads: load them with"):
        MedusaModel.from_base(tmp_path / "heads")
    with pytest.raises(ValueError, match="holds no Medusa heads"):
        MedusaModel.from_pretrained(tmp_path / "base")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's
def test_training_on_an_adapter_says_how_to_merge_it(tmp_path):
    peft = pytest.importorskip("peft")
    tiny(dtype=torch.float32).save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "lora"
    )
    with pytest.raises(ValueError, match=r"is a PEFT adapter for .*merge_and_unload"):
        Source(str(tmp_path / "lora"), "data.jsonl").tokenizer()
