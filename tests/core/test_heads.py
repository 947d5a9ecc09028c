import pytest
import torch
from models import ARCHITECTURES, prompt, tiny
from torch.nn import functional as F

from medusa import MedusaConfig, MedusaHeads, MedusaModel
from medusa.core.heads import LogitRule


def slow_heads(heads, hidden, lm_head=None):
    """Return logits by the formula of section 2.1.1, one head at a time."""
    result = []
    for k in range(heads.config.num_heads):
        state = hidden
        for layer in range(heads.config.num_layers):
            linear = F.linear(
                state, heads.w1[layer][k], heads.b1[layer][k, 0] if heads.config.bias else None
            )
            state = state + F.silu(linear)
        logits = F.linear(state, heads.w2[k]) if heads.w2 is not None else lm_head(state)
        if heads.output_bias is not None:
            logits = logits + heads.output_bias
        result.append(heads.rule(logits))
    return torch.stack(result)


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_stacked_heads_equal_the_formula(num_layers, own, bias):
    config = MedusaConfig(3, num_layers, 8, 11, own_lm_head=own, bias=bias)
    heads = MedusaHeads(config, LogitRule(0.5, 4.0), torch.randn(11) if own else None).double()
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    lm_head = torch.nn.Linear(8, 11, bias=False).double()
    hidden = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(heads(hidden, lm_head), slow_heads(heads, hidden, lm_head))


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("own", [True, False])
def test_new_heads_predict_what_the_base_predicts(name, own):
    """This includes scale (Cohere, Granite), soft-cap (Gemma-2) and bias."""
    base = tiny(name, attention="eager")
    model = MedusaModel.from_base(base, num_heads=2, own_lm_head=own)
    ids = prompt(9)
    hidden = model.hidden_states(ids)
    for head in model.heads(hidden, model.lm_head):
        torch.testing.assert_close(head, base(ids).logits)


def test_the_base_lm_head_bias_is_a_constant_of_every_head():
    lm_head = torch.nn.Linear(4, 6, bias=True)
    heads = MedusaHeads.from_lm_head(lm_head, MedusaConfig(2, 1, 4, 6))
    hidden = torch.randn(3, 4)
    torch.testing.assert_close(heads(hidden)[1], lm_head(hidden))
    assert not any("bias" in name and "linear" not in name for name in heads.tensors())


def test_a_shared_lm_head_is_not_copied():
    base = tiny()
    own = MedusaModel.from_base(base, num_heads=3).heads
    shared = MedusaModel.from_base(base, num_heads=3, own_lm_head=False).heads
    weight = base.get_output_embeddings().weight
    assert (
        sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters())
        == 3 * weight.numel()
    )
    assert set(shared.tensors()) == {
        f"{h}.0.linear.{kind}" for h in range(3) for kind in ("weight", "bias")
    }
    with pytest.raises(ValueError, match="share the base model's lm_head"):
        shared(torch.zeros(1, 32, dtype=torch.float64))


def test_tensors_round_trip_and_errors_name_all_wrong_tensors():
    config = MedusaConfig(2, 1, 4, 6)
    heads, other = MedusaHeads(config), MedusaHeads(config)
    other.load_tensors(heads.tensors())
    assert all(
        torch.equal(a, b) for a, b in zip(heads.parameters(), other.parameters(), strict=True)
    )
    named = dict(heads.tensors())
    named["9.1.weight"] = named.pop("0.1.weight")
    named["1.0.linear.bias"] = torch.zeros(7)
    with pytest.raises(
        ValueError, match=r"missing tensor 0\.1\.weight.*unknown tensor 9\.1\.weight.*\[7\].*\[4\]"
    ):
        other.load_tensors(named)


@pytest.mark.parametrize("field", ["num_heads", "num_layers", "hidden_size", "vocab_size"])
def test_invalid_sizes_are_refused(field):
    sizes = {"num_heads": 1, "num_layers": 1, "hidden_size": 4, "vocab_size": 4}
    with pytest.raises(ValueError, match=field):
        MedusaConfig(**{**sizes, field: -1})
