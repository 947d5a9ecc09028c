"""Draft vocabularies: heads that may propose only some tokens."""

import pytest
import torch
from models import prompt, tiny
from torch.nn import functional as F

from medusa import MedusaModel
from medusa.core.engine import PLAIN

TOKENS = torch.tensor([0, 2, 3, 7, 11, 19, 20, 30])


def model_of(tokens=TOKENS, own=False, **options):
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=2, own_lm_head=own, **options)
    torch.manual_seed(1)
    with torch.no_grad():
        for each in model.heads.w1:
            each.normal_(std=0.3)
    model.heads.restrict(tokens)
    return model


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("prepack", [None, False, "half"])
def test_heads_give_their_tokens_the_logits_of_all_heads_and_no_other(own, prepack):
    model, hidden = model_of(own=own, prepack=prepack), torch.randn(3, 32)
    found = model.draft_logits(hidden)
    model.heads.restrict(None)
    model.refresh()
    everything = model.draft_logits(hidden)
    torch.testing.assert_close(found[..., TOKENS], everything[..., TOKENS], rtol=1e-4, atol=1e-4)
    others = torch.ones(found.shape[-1], dtype=torch.bool)
    others[TOKENS] = False
    assert (found[..., others] == -torch.inf).all()
    assert everything.isfinite().all()


def test_shared_heads_read_only_the_rows_of_their_tokens(monkeypatch):
    model, project = model_of(), []
    model.refresh()
    monkeypatch.setattr(type(model.runner), "project", lambda *_: project.append(1))
    model.draft_logits(torch.randn(1, 32))
    assert not project


def test_rows_follow_the_model_when_its_weights_change():
    model, hidden = model_of(), torch.randn(1, 32)
    before = model.draft_logits(hidden)
    with torch.no_grad():
        model.base.lm_head.weight.mul_(2)
    model.refresh()
    torch.testing.assert_close(model.draft_logits(hidden), 2 * before)


def test_an_lm_head_with_a_bias_adds_it():
    model, hidden = model_of(), torch.randn(1, 32)
    bias = torch.randn(model.heads.config.vocab_size)
    before = model.draft_logits(hidden)
    model.base.lm_head.bias = torch.nn.Parameter(bias)
    model.refresh()
    found = model.draft_logits(hidden)[..., TOKENS]
    torch.testing.assert_close(found, before[..., TOKENS] + bias[TOKENS])


@pytest.mark.parametrize("way", ["hook", "forward"])
def test_an_lm_head_that_computes_otherwise_is_called(way):
    model, hidden = model_of(), torch.randn(1, 32)
    before, lm_head = model.draft_logits(hidden), model.base.lm_head
    if way == "hook":
        lm_head.register_forward_pre_hook(lambda _, arguments: (2 * arguments[0],))
    else:  # as accelerate does for offloaded layers
        lm_head.forward = lambda states: F.linear(2 * states, lm_head.weight)
    model.refresh()
    torch.testing.assert_close(model.draft_logits(hidden), 2 * before)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("owned", [False, True])
def test_the_text_is_that_of_plain_decoding(owned, compiled, tmp_path):
    model = model_of()
    model.base.save_pretrained(tmp_path / "base")
    if owned:
        model.save_pretrained(tmp_path / "heads", base=str(tmp_path / "base"))
        model = MedusaModel.from_pretrained(tmp_path / "heads", dtype=torch.float32)
        assert torch.equal(model.heads.token_map, TOKENS)
        assert model.heads.config.draft_vocab_size == len(TOKENS)
    model.compiled = compiled
    options = {"max_new_tokens": 40, "do_sample": False}
    plain = model.generate(prompt(), tree=PLAIN, **options)
    assert torch.equal(model.generate(prompt(), **options), plain)
    for _ in range(2):  # packed in place, the rows are read once
        assert torch.equal(model.generate(prompt(), **options), plain)


@pytest.mark.parametrize("method", ["typical", "rejection"])
def test_sampling_with_few_tokens(method):
    torch.manual_seed(0)
    options = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.9}
    found = model_of().generate(prompt(), acceptance=method, **options)
    assert found.shape == (1, 37)


def test_a_tree_with_more_ranks_than_tokens_is_refused():
    from medusa import CandidateTree

    model = model_of(TOKENS[:3])
    with pytest.raises(ValueError, match="rank 3 but the vocabulary has 3"):
        model.generate(prompt(), tree=CandidateTree.dense([4]), max_new_tokens=3)


@pytest.mark.parametrize("tokens", [[3, 2], [1, 1], [-1, 2], [5, 999], []], ids=str)
def test_token_maps_out_of_order_or_range_are_refused(tokens):
    with pytest.raises(ValueError, match=r"token_map|draft_vocab_size"):
        model_of(torch.tensor(tokens, dtype=torch.long))


def test_the_slow_reference():
    model = model_of(prepack=False)
    hidden = torch.randn(2, 32)
    states = model.heads.residual(hidden)
    expected = F.linear(states, model.base.lm_head.weight[TOKENS]).transpose(0, 1)
    torch.testing.assert_close(model.draft_logits(hidden)[..., TOKENS], expected)
