"""Tests of names: which model and heads a name finds, and how both are loaded."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from medusa import CandidateTree, MedusaModel
from medusa.loading import NamedModel, load


@pytest.fixture
def heads(base_folder, tmp_path):
    MedusaModel.from_base(base_folder, 2).save_pretrained(tmp_path / "heads")
    return tmp_path / "heads"


def test_heads_are_found_with_the_base_model_that_they_name(base_folder, heads):
    named = NamedModel.find(heads, dtype="auto")
    assert named.heads == heads
    assert named.base.name.startswith(str(heads))  # as the relative path in the heads' folder
    assert named.config().vocab_size == named.tokenizer().vocab_size
    assert NamedModel.find(heads, base_folder).base.name == str(base_folder)


def test_a_base_model_is_found_without_heads(base_folder):
    named = NamedModel.find(base_folder)
    assert (named.heads, named.base.name) == (None, str(base_folder))
    with pytest.raises(ValueError, match="has none: leave it out"):
        NamedModel.find(base_folder, base_folder)


def test_a_revision_is_that_of_the_name(heads, base_folder, monkeypatch):
    assert NamedModel.find(heads, revision="one").options == {}
    assert NamedModel.find(heads, revision="one", base_revision="two").options == {
        "revision": "two"
    }
    monkeypatch.setattr("medusa.formats.names.find_heads", lambda *_, **__: None)
    named = NamedModel.find("owner/base", revision="one")
    assert (named.base.revision, named.options) == ("one", {"revision": "one"})


def test_heads_and_tokenizer_are_loaded_together(heads):
    model, tokenizer = load(NamedModel.find(heads, dtype=torch.float64), all_heads=True)
    assert model.heads.config.num_heads == 2
    assert model.base.dtype == torch.float64
    assert model.owns_base
    assert tokenizer("one two")["input_ids"]


def test_a_base_model_alone_decodes_plainly(base_folder):
    model, tokenizer = load(NamedModel.find(base_folder))
    assert model.tree == CandidateTree()
    ids = tokenizer("one two", return_tensors="pt")["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    assert model.generate(ids, max_new_tokens=8).equal(
        base.generate(ids, max_new_tokens=8, do_sample=False)
    )


def test_ends_come_from_the_generation_configuration(base_folder, tmp_path):
    assert NamedModel.find(base_folder).end_ids() == set()
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    base.generation_config.eos_token_id = [5, 7]
    base.save_pretrained(tmp_path)
    assert NamedModel.find(tmp_path).end_ids() == {5, 7}
