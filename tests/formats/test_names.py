"""Names of heads and base models, in folders, in the hub's cache and on the hub."""

import json
from types import SimpleNamespace

import pytest
import torch
from foreign import FORMS, pickled_heads, raw_heads, store, whole_model, write_config
from huggingface_hub.errors import EntryNotFoundError
from models import publish, tiny
from safetensors.torch import load_file

from medusa import MedusaModel
from medusa.formats.names import find_heads
from medusa.loading import NamedModel
from medusa.training import Source


@pytest.mark.parametrize("form", FORMS)
def test_heads_inside_a_model_are_found_with_their_base(tmp_path, form):
    whole_model(tmp_path / "whole", raw_heads(), tiny(dtype=torch.float32), form)
    assert find_heads(tmp_path / "whole") == tmp_path / "whole"
    named = NamedModel.find(tmp_path / "whole")
    assert named.base.name == str(tmp_path / "whole")
    assert Source(str(tmp_path / "whole"), "data.jsonl").base == str(tmp_path / "whole")
    with pytest.raises(ValueError, match="holds Medusa heads: load them with"):
        MedusaModel.from_base(tmp_path / "whole")


@pytest.mark.parametrize("form", FORMS)
def test_heads_inside_a_model_on_the_hub_keep_the_models_name(tmp_path, form):
    base = tiny(dtype=torch.float32)
    whole_model(tmp_path / "whole", raw_heads(), base, form)
    publish(tmp_path / "whole", tmp_path / "hub", "owner/whole")
    hub = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    assert find_heads("owner/whole", **hub).parent.name == "snapshots"
    model = MedusaModel.from_pretrained("owner/whole", all_heads=True, **hub)
    assert model.heads.config.num_heads == 3
    model.save_pretrained(tmp_path / "heads")
    written = json.loads((tmp_path / "heads" / "config.json").read_text())
    assert written["base_model_name_or_path"] == "owner/whole"


def test_pickled_heads_are_found(tmp_path):
    pickled_heads(tmp_path / "heads", raw_heads(), base="owner/base")
    publish(tmp_path / "heads", tmp_path / "hub", "owner/heads")
    hub = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    assert find_heads(tmp_path / "heads") == tmp_path / "heads"
    assert find_heads("owner/heads", **hub).parent.name == "snapshots"
    assert NamedModel.find("owner/heads", **hub).base.name == "owner/base"
    with pytest.raises(ValueError, match="holds Medusa heads: load them with"):
        MedusaModel.from_base(tmp_path / "heads")


class Hub:
    """A hub whose files are those of a folder; it counts what is downloaded."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.downloaded = folder, []
        for name in ("hf_hub_download", "snapshot_download", "HfApi"):
            monkeypatch.setattr(f"medusa.formats.names.{name}", getattr(self, name))

    def hf_hub_download(self, name, file, **options):
        if not (self.folder / file).is_file():
            raise EntryNotFoundError(f"no {file}")
        self.downloaded.append(file)
        return str(self.folder / file)

    def snapshot_download(self, name, allow_patterns, **options):
        self.downloaded += [each for each in allow_patterns if (self.folder / each).is_file()]
        return str(self.folder)

    def HfApi(self, token=None):  # noqa: N802
        return self

    def parse_safetensors_file_metadata(self, name, file, revision=None):
        if not (self.folder / file).is_file():
            raise EntryNotFoundError(f"no {file}")
        return SimpleNamespace(tensors=load_file(self.folder / file))


@pytest.mark.parametrize("form", FORMS)
def test_only_files_with_heads_are_downloaded(tmp_path, form, monkeypatch):
    folder = tmp_path / "whole"
    whole_model(folder, raw_heads(), tiny(dtype=torch.float32), form)
    index = next(folder.glob("*.index.json"), None)
    last = sorted(
        file.name for file in folder.iterdir() if file.suffix in (".bin", ".safetensors")
    )[-1]
    if index is not None:  # in real files all heads are in the last shard
        places = json.loads(index.read_text())["weight_map"]
        places |= {name: last for name in places if name.startswith("medusa_head.")}
        index.write_text(json.dumps({"weight_map": places}))
    hub = Hub(folder, monkeypatch)
    assert find_heads("owner/whole") == folder
    weights = {file for file in hub.downloaded if file.endswith((".bin", ".safetensors"))}
    assert weights == {last}
    assert "config.json" in hub.downloaded


@pytest.mark.parametrize("form", FORMS)
def test_no_weights_of_a_base_model_are_downloaded_to_look_for_heads(tmp_path, form, monkeypatch):
    base = tiny(dtype=torch.float32)
    write_config(tmp_path, model_type="llama")
    store(tmp_path, {name: tensor.clone() for name, tensor in base.state_dict().items()}, form)
    hub = Hub(tmp_path, monkeypatch)
    assert find_heads("owner/base") is None
    assert not [file for file in hub.downloaded if file.endswith((".bin", ".safetensors"))]


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
