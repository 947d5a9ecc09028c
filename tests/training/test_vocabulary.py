"""Heads that learn and propose the most frequent tokens only."""

import pytest
import torch
from models import tiny
from torch.nn import functional as F

from medusa.core.checks import new_heads
from medusa.data.chats import Example
from medusa.training.training_model import TrainingModel
from medusa.training.vocabulary import frequent_tokens

HEADS, POSITIONS = 2, 13


def training_model_of(own, **config):
    torch.manual_seed(0)
    base = tiny(dtype=torch.float32, **config).requires_grad_(False)
    heads = new_heads(base, HEADS, 1, own, bias=True)
    with torch.no_grad():
        heads.w1[0].normal_(std=0.1)
    return TrainingModel(base, heads, decay=0.8)


def batch_of(training_model, tokens):
    hidden = torch.randn(POSITIONS, training_model.heads.config.hidden_size)
    targets = tokens[torch.randint(len(tokens), (POSITIONS, 1 + HEADS))]
    targets[-1, 2] = -100
    return {"hidden": hidden, "targets": targets}


def gradients(training_model, batch):
    training_model.zero_grad()
    result = training_model(**batch)
    result["loss"].backward()
    return result["loss"].detach(), [
        parameter.grad.clone() for parameter in training_model.heads.parameters()
    ]


@pytest.mark.parametrize("own", [True, False])
def test_the_restricted_loss_is_the_cross_entropy_over_these_tokens_and_trains_no_others(own):
    training_model, tokens = training_model_of(own), torch.tensor([2, 3, 7, 19, 30])
    batch = batch_of(training_model, tokens)
    training_model.restrict_vocabulary(tokens)
    loss, found = gradients(training_model, batch)

    logits = training_model.heads(batch["hidden"], training_model.base.lm_head)[..., tokens]
    places = torch.stack(
        [
            (tokens == each).nonzero()[0, 0] if each >= 0 else each
            for each in batch["targets"].flatten()
        ]
    )
    ahead = places.reshape(POSITIONS, -1)[:, 1:]
    whole = sum(
        0.8 ** (k + 1) * F.cross_entropy(logits[k], ahead[:, k], ignore_index=-100)
        for k in range(HEADS)
    )
    training_model.zero_grad()
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    for grad, parameter in zip(found, training_model.heads.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-6)
    if own:
        rest = torch.ones(training_model.heads.config.vocab_size, dtype=torch.bool)
        rest[tokens] = False
        w2 = next(
            grad
            for grad, each in zip(found, training_model.heads.parameters(), strict=True)
            if each is training_model.heads.w2
        )
        assert not w2[:, rest].any()
        assert w2[:, ~rest].any()


@pytest.mark.parametrize("own", [True, False])
def test_the_restricted_loss_over_all_tokens_is_the_usual_loss(own):
    training_model = training_model_of(own)
    every = torch.arange(training_model.heads.config.vocab_size)
    batch = batch_of(training_model, every)
    loss, grads = gradients(training_model, batch)
    training_model.restrict_vocabulary(every)
    again, others = gradients(training_model, batch)
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(others, grads, rtol=1e-5, atol=1e-5)


def test_evaluations_rank_what_heads_may_propose_and_miss_other_targets():
    training_model, tokens = training_model_of(True), torch.tensor([2, 3, 7])
    batch = batch_of(training_model, torch.tensor([2, 3, 7, 11]))
    before = training_model(**batch, top=3)
    training_model.restrict_vocabulary(tokens)
    after = training_model(**batch, top=3)
    assert torch.equal(after["sums"], before["sums"])
    assert torch.equal(after["counts"], before["counts"])
    ahead = batch["targets"][:, 1:]
    # three ranks hold all three tokens
    assert after["hits"][:, 2].tolist() == torch.isin(ahead, tokens).sum(0).tolist()
    assert ahead.eq(11).any()


@pytest.mark.parametrize("own", [True, False])
def test_a_target_outside_the_tokens_is_left_out_of_the_loss(own):
    training_model, tokens = training_model_of(own), torch.tensor([2, 3, 7])
    batch = batch_of(training_model, torch.tensor([2, 3, 7, 11]))
    training_model.restrict_vocabulary(tokens)
    counts = torch.full((1 + HEADS,), POSITIONS)
    loss, found = gradients(training_model, {**batch, "counts": counts})
    left = batch["targets"].clone()
    left[~torch.isin(left, tokens)] = -100
    assert not torch.equal(left, batch["targets"])
    again, others = gradients(training_model, {**batch, "targets": left, "counts": counts})
    assert torch.equal(loss, again)
    torch.testing.assert_close(found, others)


def test_the_most_frequent_targets_are_taken_and_the_context_does_not_count():
    examples = [Example.answered([1, 2], [9, 4]), Example.answered([5], [4, 7])]
    labels = [each.labels[1:] for each in examples]
    assert frequent_tokens(labels, 10).tolist() == [4, 7, 9]
    assert frequent_tokens(labels, 2).tolist() == [4, 7]
    assert frequent_tokens(map(torch.tensor, labels), 1).tolist() == [4]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("restricted", [True, False])
def test_the_overlap_term_is_part_of_every_kind_of_head_loss(own, restricted):
    training_model, tokens = training_model_of(own), torch.arange(32)
    batch = batch_of(training_model, tokens)
    entropy, _ = gradients(training_model, batch)
    if restricted:  # to all tokens that the targets can be, and the others
        training_model.restrict_vocabulary(torch.arange(training_model.heads.config.vocab_size))
    training_model.overlap = 2.0
    loss, found = gradients(training_model, batch)
    logits = training_model.heads(batch["hidden"], training_model.base.lm_head)
    whole = 0
    for k in range(HEADS):
        target = batch["targets"][:, 1 + k]
        known = target >= 0
        q = logits[k][known].softmax(-1).gather(1, target[known, None])
        whole = whole + 0.8 ** (k + 1) * (-q.log() + 2 * (1 - q)).mean()
    training_model.zero_grad()
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    assert loss > entropy
    for grad, parameter in zip(found, training_model.heads.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-6)
