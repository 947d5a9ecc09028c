"""Base models that heads cannot be loaded for are refused; offloaded ones work."""

import pytest
import torch
from models import COMMON, OWN_TREE, changed_heads, tiny
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BloomConfig,
    GPTNeoConfig,
    MambaConfig,
    T5Config,
)

from medusa import MedusaModel


def refused(config, loader=AutoModelForCausalLM):
    with pytest.raises(ValueError) as problem:  # noqa: PT011
        MedusaModel.from_base(loader.from_config(config), num_heads=2)
    return str(problem.value)


def test_bases_that_cannot_verify_a_tree_are_refused_with_the_remedy():
    t5 = T5Config(vocab_size=61, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    assert "decoder-only" in refused(t5, AutoModelForSeq2SeqLM)
    mamba = MambaConfig(vocab_size=61, hidden_size=16, state_size=4, num_hidden_layers=1)
    assert "use a model whose layers are all attention" in refused(mamba)
    bloom = BloomConfig(vocab_size=61, hidden_size=16, n_layer=1, n_head=2)
    assert "use a model with rotary or learnt positions" in refused(bloom)
    falcon = AutoConfig.for_model(
        "falcon", **COMMON, alibi=True, new_decoder_architecture=True, num_kv_heads=2
    )
    assert "use a model with rotary or learnt positions" in refused(falcon)


def test_local_attention_by_column_is_refused():
    neo = GPTNeoConfig(
        vocab_size=61,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
    )
    assert "local attention" in refused(neo)


def test_arguments_for_loading_are_refused_beside_a_loaded_model(base, tmp_path):
    with pytest.raises(TypeError, match="num_head: unknown"):
        MedusaModel.from_base(base, num_head=3)
    changed_heads(base).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="dtype"):
        MedusaModel.from_pretrained(tmp_path, base=base, dtype=torch.bfloat16)
    assert MedusaModel.from_pretrained(tmp_path, base=base, local_files_only=True).tree == OWN_TREE
    with pytest.raises(TypeError, match="get_base_model"):
        MedusaModel.from_base(torch.nn.Linear(2, 2))


def test_flash_attention_is_refused_with_the_remedy():
    own = tiny("llama", torch.float32)
    own.config._attn_implementation = "flash_attention_2"
    with pytest.raises(
        ValueError, match="takes no tree mask; load it with attn_implementation='sdpa'"
    ):
        MedusaModel.from_base(own, num_heads=2)


def test_requested_flash_attention_becomes_sdpa_with_a_warning(tmp_path):
    tiny("llama", torch.float32).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="sdpa"):
        model = MedusaModel.from_base(
            tmp_path, num_heads=2, attn_implementation="flash_attention_2"
        )
    assert model.base.config._attn_implementation == "sdpa"


def test_a_base_with_recurrent_states_is_refused():
    own = tiny("llama", torch.float32)
    own.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        MedusaModel.from_base(own, num_heads=2)


@pytest.mark.parametrize(
    ("embedding", "lm_head"), [("cpu", "cpu"), ("cpu", "disk"), ("disk", "disk")]
)
def test_an_offloaded_base_decodes_the_same_text(tmp_path, embedding, lm_head):
    pytest.importorskip("accelerate")
    own = tiny("llama", torch.float32)
    own.save_pretrained(tmp_path / "base")
    MedusaModel.from_base(own, num_heads=2).save_pretrained(tmp_path / "heads", base="../base")
    layers = {f"model.layers.{number}": "disk" for number in range(own.config.num_hidden_layers)}
    places = {
        "model.embed_tokens": embedding,
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": lm_head,
    }
    model = MedusaModel.from_pretrained(
        tmp_path / "heads", device_map={**places, **layers}, offload_folder=tmp_path / "offloaded"
    )
    assert any(parameter.is_meta for parameter in model.base.parameters())
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = own.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), expected)
