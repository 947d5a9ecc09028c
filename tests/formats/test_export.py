"""Heads exported for inference engines, computed from the files as each engine's code does."""

import json

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from medusa import MedusaModel
from medusa.formats.export import ENGINES, check_export
from medusa.loading.export import Export

HEADS = 3


def model_with(architecture="llama", **options):
    """A model whose heads have random weights."""
    base = tiny(architecture, dtype=torch.float32)
    model = MedusaModel.from_base(base, HEADS, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 6)
    return model


def exported(model, name, folder, dtype=None):
    """Export for an engine; return its `config.json` and tensors."""
    engine = ENGINES[name]
    Export.of(model, engine, dtype).write(folder, "owner/base")
    config = json.loads((folder / "config.json").read_text())
    file = folder / engine.file
    tensors = torch.load(file, weights_only=True) if file.suffix == ".pt" else load_file(file)
    return config, tensors


def residual(tensors, names, state):
    for name in names:
        state = state + F.silu(
            F.linear(state, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
        )
    return state


def original_logits(config, tensors, hidden, lm_head):
    """Logits as the authors' code, TGI and TensorRT-LLM compute them."""
    count, layers = config["medusa_num_heads"], config["medusa_num_layers"]
    states = [
        residual(tensors, [f"{head}.{layer}.linear" for layer in range(layers)], hidden)
        for head in range(count)
    ]
    own = [tensors.get(f"{head}.{layers}.weight", lm_head) for head in range(count)]
    return torch.stack([F.linear(*pair) for pair in zip(states, own, strict=True)])


def vllm_logits(config, tensors, hidden, vocab):
    """Logits as vLLM's Medusa model computes them: minus infinity outside the token map."""
    shared, tokens = tensors.get("lm_head.weight"), tensors.get("token_map")
    found = []
    for head in range(config["num_heads"]):
        layers = range(config["num_hidden_layers"])
        names = [f"blocks.{head}.layers.{layer}" for layer in layers]
        own = tensors[f"lm_heads.{head}.weight"] if shared is None else shared
        logits = F.linear(residual(tensors, names, hidden), own)
        if tokens is not None:
            logits = logits if len(tokens) == logits.shape[-1] else logits[..., tokens]
            everything = logits.new_full((*logits.shape[:-1], vocab), -torch.inf)
            logits = everything.index_copy(-1, tokens, logits)
        found.append(logits)
    return torch.stack(found)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_computes_the_logits_of_the_model(tmp_path, architecture, own, name):
    model = model_with(architecture, own_lm_head=own)
    config, tensors = exported(model, name, tmp_path / "a")
    lm_head = model.base.get_output_embeddings()
    hidden = torch.randn(5, lm_head.weight.shape[1])
    with torch.inference_mode():
        expected = model.heads(hidden, lm_head)
        found = (
            vllm_logits(config, tensors, hidden, expected.shape[-1])
            if name == "vllm"
            else original_logits(config, tensors, hidden, lm_head.weight)
        )
    torch.testing.assert_close(found, expected)


def test_vllm_reads_a_draft_vocabulary_of_heads_that_share_the_lm_head(tmp_path):
    model = model_with(own_lm_head=False, num_layers=2)
    tokens = torch.tensor([1, 4, 5, 30, 60])
    model.heads.restrict(tokens)
    config, tensors = exported(model, "vllm", tmp_path / "a")
    assert config["truncated_vocab_size"] == 5
    assert torch.equal(tensors["token_map"], tokens)
    lm_head = model.base.get_output_embeddings()
    hidden = torch.randn(4, lm_head.weight.shape[1])
    with torch.inference_mode():
        expected = model.heads.proposed(model.heads(hidden, lm_head))
        torch.testing.assert_close(vllm_logits(config, tensors, hidden, 61), expected)


def test_other_heads_propose_all_tokens(tmp_path):
    # vLLM cannot load own lm_heads together with a draft vocabulary, and others know none
    for name, own in (("vllm", True), ("tgi", False)):
        model = model_with(own_lm_head=own)
        model.heads.restrict(torch.tensor([1, 4]))
        config, tensors = exported(model, name, tmp_path / name)
        assert "truncated_vocab_size" not in config
        assert "token_map" not in tensors


def test_heads_stay_small_where_the_engine_shares_the_lm_head(tmp_path):
    small, large = model_with(own_lm_head=False), model_with(own_lm_head=False, num_layers=2)
    config, tensors = exported(small, "tgi", tmp_path / "small")
    assert config["version"] == "2"
    assert not any(name.endswith(".1.weight") for name in tensors)
    # TGI's code for a shared lm_head knows heads of one layer alone
    config, tensors = exported(large, "tgi", tmp_path / "large")
    assert "version" not in config
    assert tensors["0.2.weight"].shape == (61, 32)
    assert Export.of(large, ENGINES["tgi"]).changes() == [
        "each head gets a copy of the base model's lm_head"
    ]


def test_biases_of_zero_are_added_where_an_engine_needs_them(tmp_path):
    model = MedusaModel.from_base(tiny(dtype=torch.float32), HEADS, bias=False)
    config, tensors = exported(model, "tensorrt-llm", tmp_path / "a")
    assert config["medusa_fc_bias"]
    assert not tensors["0.0.linear.bias"].any()
    config, tensors = exported(model, "vllm", tmp_path / "b")
    assert not config["medusa_fc_bias"]
    assert not any(name.endswith("bias") for name in tensors)


def test_the_size_is_told_beforehand_in_the_chosen_dtype(tmp_path):
    model = model_with()
    export = Export.of(model, ENGINES["vllm"], torch.float16)
    export.write(tmp_path / "a", "owner/base")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert export.bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_heads_that_an_engine_cannot_compute_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at most 1 layer, and these have 2"):
        Export.of(model_with(num_layers=2), ENGINES["original"])
    model = model_with()
    model.heads.output_bias = torch.ones(61)
    with pytest.raises(ValueError, match="lm_head of the base model has a bias"):
        Export.of(model, ENGINES["vllm"])
    (tmp_path / "other").touch()
    with pytest.raises(ValueError, match="not empty: name a new folder"):
        Export.of(model_with(), ENGINES["vllm"]).write(tmp_path, "owner/base")


def change_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def change_tensors(folder, file, change):
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)


WRONG = {
    "a number of heads that the tensors do not have": (
        "tgi",
        lambda folder: change_config(folder, medusa_num_heads=4),
        "tensor 3.0.linear.weight is missing",
    ),
    "two numbers of heads": (
        "vllm",
        lambda folder: change_config(folder, num_attention_heads=8),
        "must give one number of heads",
    ),
    "architectures": (
        "tgi",
        lambda folder: change_config(folder, architectures=["LlamaForCausalLM"]),
        "has architectures",
    ),
    "biases that config.json denies": (
        "vllm",
        lambda folder: change_config(folder, medusa_fc_bias=False),
        "blocks.0.layers.0.bias is not read",
    ),
    "a missing tensor": (
        "tensorrt-llm",
        lambda folder: change_tensors(
            folder, "medusa_lm_head.safetensors", lambda found: found.pop("1.0.linear.bias")
        ),
        "tensor 1.0.linear.bias is missing",
    ),
    "a misshapen tensor": (
        "vllm",
        lambda folder: change_tensors(
            folder,
            "model.safetensors",
            lambda found: found.update({"lm_heads.0.weight": torch.zeros(60, 32)}),
        ),
        r"lm_heads.0.weight has shape \[60, 32\], not \[61, 32\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_checker_refuses_a_wrong_folder(tmp_path, case):
    name, spoil, said = WRONG[case]
    exported(model_with(), name, tmp_path / "a")
    check_export(tmp_path / "a", ENGINES[name])
    spoil(tmp_path / "a")
    with pytest.raises(ValueError, match=said):
        check_export(tmp_path / "a", ENGINES[name])
