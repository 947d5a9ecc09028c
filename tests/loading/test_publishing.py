"""Heads that are pushed to the hub and loaded from it, through a local stand-in for the hub."""

import re

import pytest
import torch
from hub import TOKEN
from models import OWN_TREE, changed_heads, prompt, tiny
from transformers import AutoModelForCausalLM

from medusa import MedusaModel
from medusa.formats.card import CARD

OPTIONS = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture
def publish_base(hub, tmp_path):
    """Publish a tiny base model as someone/base, with a card that holds the given metadata."""

    def publish(metadata="license: mit", name="llama"):
        folder = tmp_path / "base"
        tiny(name, torch.float32).save_pretrained(folder)
        (folder / CARD).write_text(f"---\n{metadata}\n---\n\nA base model.\n")
        hub.publish(folder, "someone/base")

    return publish


@pytest.fixture
def model(publish_base):
    """Heads for a base model from the hub."""
    publish_base()
    return changed_heads(AutoModelForCausalLM.from_pretrained("someone/base"))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_pushed_heads_load_by_name_and_give_the_same_text(hub, publish_base, name):
    publish_base(name=name)
    model = changed_heads(AutoModelForCausalLM.from_pretrained("someone/base"))
    commit = model.push_to_hub("someone/heads", private=True, commit_message="Add heads")
    pushed = hub.repositories["someone/heads"]
    assert commit == f"{hub.url}/someone/heads/commit/{pushed.commit('main')}"
    assert (pushed.private, pushed.messages) == (True, ["Add heads"])
    assert set(pushed.branches["main"]) == {
        "README.md",
        "config.json",
        "custom_generate/generate.py",
        "medusa_lm_head.safetensors",
        "medusa_tree.json",
    }
    again = MedusaModel.from_pretrained("someone/heads")
    assert again.tree == OWN_TREE
    assert (
        again.generate(prompt(), **OPTIONS).tolist() == model.generate(prompt(), **OPTIONS).tolist()
    )
    for sent, loaded in zip(model.heads.parameters(), again.heads.parameters(), strict=True):
        assert torch.equal(sent, loaded)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's
def test_an_adapter_of_the_base_is_pushed_with_the_heads(hub, publish_base):
    peft = pytest.importorskip("peft")
    publish_base()
    own = AutoModelForCausalLM.from_pretrained("someone/base")
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj"], init_lora_weights=False)
    base = AutoModelForCausalLM.from_pretrained("someone/base")
    MedusaModel.from_base(peft.get_peft_model(base, lora).get_base_model(), 2).push_to_hub(
        "someone/heads"
    )
    files = hub.files("someone/heads")
    assert "adapter/adapter_model.safetensors" in files
    assert "this model with the adapter in this repository" in files[CARD].decode()
    text = MedusaModel.from_pretrained("someone/heads").generate(prompt(), **OPTIONS)
    assert text.equal(base.generate(prompt(), **OPTIONS))
    assert not text.equal(own.generate(prompt(), **OPTIONS))


def test_the_hubs_refusals_reach_the_user(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(OSError, match="401"):
        model.push_to_hub("someone/heads")
    assert "someone/heads" not in hub.repositories
    model.push_to_hub("someone/heads", token=TOKEN, private=True)
    with pytest.raises(OSError, match="someone/heads"):
        MedusaModel.from_pretrained("someone/heads")
    assert MedusaModel.from_pretrained("someone/heads", token=TOKEN).tree == OWN_TREE


def test_a_branch_is_made_and_a_pull_request_is_opened(hub, model):
    model.push_to_hub("someone/heads", revision="second")
    files = hub.repositories["someone/heads"].branches
    assert "config.json" in files["second"]
    assert "config.json" not in files["main"]
    assert MedusaModel.from_pretrained("someone/heads", revision="second").tree == OWN_TREE
    commit = model.push_to_hub("someone/heads", create_pr=True)
    assert commit.pr_url == f"{hub.url}/someone/heads/discussions/1"
    assert "config.json" in files["refs/pr/1"]
    assert "config.json" not in files["main"]


@pytest.mark.parametrize(
    ("metadata", "stated", "words"),
    [
        ("license: mit", "license: mit\n", "| licence of the base model | mit |"),
        (
            "license: other\nlicense_name: own\nlicense_link: https://own.example/licence",
            "license: other\nlicense_name: own\n",
            "| licence of the base model | [own](https://own.example/licence) |",
        ),
        ("language: en", "", "| licence of the base model | not known; see the base model |"),
        ("license: [mit", "", "| licence of the base model | not known; see the base model |"),
    ],
    ids=["known", "named", "not said", "broken"],
)
def test_the_card_states_the_base_models_licence(hub, publish_base, metadata, stated, words):
    publish_base(metadata)
    model = MedusaModel.from_base("someone/base", 2)
    model.push_to_hub("someone/heads")
    card = hub.files("someone/heads")[CARD].decode()
    assert words in card
    assert ("license" in card) == bool(stated)
    assert stated in card


def test_a_card_beside_the_heads_or_in_the_repository_is_kept(hub, model, tmp_path):
    model.push_to_hub("someone/heads")
    hub.files("someone/heads")[CARD] = b"a card that someone wrote"
    model.push_to_hub("someone/heads")
    assert hub.files("someone/heads")[CARD] == b"a card that someone wrote"
    model.save_pretrained(tmp_path / "heads")
    (tmp_path / "heads" / CARD).write_text("another card")
    MedusaModel.from_pretrained(tmp_path / "heads", all_heads=True).push_to_hub("someone/heads")
    assert hub.files("someone/heads")[CARD] == b"another card"


def test_the_card_describes_the_training_of_the_heads_folder(hub, model, tmp_path):
    model.save_pretrained(tmp_path / "heads")
    report = '{"recipe": {"method": "medusa-1", "epochs": 3.0, "bf16": false}, "device": "a GPU"}'
    (tmp_path / "heads" / "training.json").write_text(report)
    MedusaModel.from_pretrained(tmp_path / "heads", all_heads=True).push_to_hub("someone/heads")
    card = hub.files("someone/heads")[CARD].decode()
    assert "`medusa train` (a GPU)" in card
    assert "| `epochs` | 3.0 |" in card
    assert "bf16" not in card


def test_heads_that_others_could_not_load_are_not_pushed(hub, model, tmp_path):
    own = tiny("llama", torch.float32)
    own.save_pretrained(tmp_path / "own")
    from_folder = changed_heads(AutoModelForCausalLM.from_pretrained(tmp_path / "own"))
    with pytest.raises(ValueError, match="which others do not have: name its hub id, base='owner/"):
        from_folder.push_to_hub("someone/heads")
    with pytest.raises(ValueError, match=r"lies in \./own, which others do not have"):
        from_folder.push_to_hub("someone/heads", base="./own")
    with pytest.raises(ValueError, match="has no name"):
        changed_heads(own).push_to_hub("someone/heads")
    with pytest.raises(ValueError, match=r"someone/base holds a model, whose config\.json"):
        model.push_to_hub("someone/base")
    assert set(hub.repositories) == {"someone/base"}
    assert hub.repositories["someone/base"].messages == []
    from_folder.push_to_hub("someone/heads", base="someone/base")
    assert MedusaModel.from_pretrained("someone/heads").tree == OWN_TREE


@pytest.mark.slow
def test_the_code_of_the_card_runs_with_the_endpoint_of_the_environment(hub, base_folder, tmp_path):
    hub.publish(base_folder, "someone/base")
    push = (
        "from medusa import MedusaModel\n"
        "MedusaModel.from_base('someone/base', 2).push_to_hub('someone/heads', private=True)\n"
    )
    hub.run(push, tmp_path / "pushes")
    card = hub.files("someone/heads")[CARD].decode()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert "Once upon a time" in hub.run(code, tmp_path / "loads")
