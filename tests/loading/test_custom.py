"""`base.generate(custom_generate="heads", trust_remote_code=True)`."""

import copy
import pickle
import sys

import pytest
import torch
from models import OWN_TREE, changed_heads, publish, tiny, varied_prompt
from transformers import AutoModelForCausalLM, dynamic_module_utils
from transformers.generation.streamers import BaseStreamer

from medusa import MedusaGenerateOutput, MedusaModel
from medusa.loading.custom import ATTRIBUTE

KINDS = ["llama", "mistral", "qwen2"]
TEXT = {"max_new_tokens": 20, "do_sample": False}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """transformers copies the code that it runs into a cache of modules."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def heads(tmp_path, kind):
    """A folder of heads, whose base model lies beside it."""
    tiny(kind).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    changed_heads(base).save_pretrained(tmp_path / "my-heads")
    return tmp_path / "my-heads"


@pytest.fixture
def base(heads):
    return AutoModelForCausalLM.from_pretrained(heads.parent / "base")


def test_a_folder_of_heads_decodes_for_the_base_model(base, heads, kind):
    ids = varied_prompt(kind)
    expected = base.generate(ids, **TEXT)
    call = {"custom_generate": str(heads), "trust_remote_code": True}
    assert base.generate(ids, **call, **TEXT).tolist() == expected.tolist()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    output = base.generate(**inputs, **call, **TEXT, return_dict_in_generate=True)
    assert isinstance(output, MedusaGenerateOutput)
    assert output.sequences.tolist() == expected.tolist()
    (model,) = getattr(base, ATTRIBUTE).values()
    assert model.tree == OWN_TREE, "the tree of the folder"


def test_a_hub_id_of_heads(base, heads, kind, tmp_path):
    publish(heads, tmp_path / "hub", "owner/heads")
    ids = varied_prompt(kind)
    call = {"custom_generate": "owner/heads", "trust_remote_code": True}
    hub = {"cache_dir": tmp_path / "hub", "local_files_only": True}
    given = base.generate(ids, **call, **hub, **TEXT)
    assert given.tolist() == base.generate(ids, **TEXT).tolist()


def test_code_of_a_folder_runs_only_if_it_is_trusted(base, heads, kind):
    with pytest.raises(ValueError, match="trust_remote_code"):
        base.generate(
            varied_prompt(kind), custom_generate=str(heads), trust_remote_code=False, **TEXT
        )


class Heads:
    """Counts how often heads are loaded."""

    def __init__(self, monkeypatch):
        self.loaded, load = [], MedusaModel.from_pretrained

        def counted(name, **kwargs):
            self.loaded.append(name)
            return load(name, **kwargs)

        monkeypatch.setattr(MedusaModel, "from_pretrained", counted)


def test_heads_stay_with_the_base_model_until_they_change(base, heads, kind, monkeypatch):
    count, ids = Heads(monkeypatch), varied_prompt(kind)
    call = {"custom_generate": str(heads), "trust_remote_code": True, **TEXT}
    first = base.generate(ids, **call)
    assert base.generate(ids, **call).tolist() == first.tolist()
    assert len(count.loaded) == 1
    MedusaModel.from_base(base, num_heads=3).save_pretrained(heads, base="../base")
    assert base.generate(ids, **call).tolist() == first.tolist()
    assert len(count.loaded) == 2
    assert len(getattr(base, ATTRIBUTE)) == 1
    assert not any("medusa" in name for name in base.state_dict())
    for twin in (copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        assert not getattr(twin, ATTRIBUTE)
        assert twin.generate(ids, **call).tolist() == first.tolist()
    assert len(count.loaded) == 4


class Collects(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


def test_a_streamer_reaches_the_heads(base, heads, kind):
    streamer, ids = Collects(), varied_prompt(kind)
    call = {"custom_generate": str(heads), "trust_remote_code": True, "streamer": streamer}
    given = base.generate(ids, **call, **TEXT)
    assert streamer.tokens == [*given[0].tolist(), "end"]


def test_heads_that_do_not_fit_are_refused(heads, kind):
    other = tiny(kind, torch.float32, hidden_size=48)
    with pytest.raises(ValueError, match="hidden_size is 32"):
        other.generate(
            varied_prompt(kind), custom_generate=str(heads), trust_remote_code=True, **TEXT
        )


def test_heads_can_be_named(heads, base, kind):
    from medusa.loading.custom import generate

    ids = varied_prompt(kind)
    given = generate(base, heads=str(heads), inputs=ids, **TEXT)
    assert given.tolist() == base.generate(ids, **TEXT).tolist()
    with pytest.raises(ValueError, match="name the heads"):
        generate(base, inputs=ids, **TEXT)


def test_without_this_library_its_package_is_named(base, heads, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "medusa.loading.custom", None)
    (heads / "custom_generate" / "generate.py").open("a").write(f"# for {kind}, loaded anew\n")
    with pytest.raises(ImportError, match="pip install medusa-decoding"):
        base.generate(
            varied_prompt(kind), custom_generate=str(heads), trust_remote_code=True, **TEXT
        )
