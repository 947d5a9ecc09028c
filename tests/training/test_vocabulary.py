"""The heads' loss, restricted to the tokens that occur in the data."""

import pytest
import torch
from models import tiny
from torch.nn import functional as F

from medusa.core.checks import new_heads
from medusa.data.chats import Example
from medusa.training.training_model import TrainingModel
from medusa.training.vocabulary import occurring_tokens

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


def test_evaluations_are_over_the_whole_vocabulary():
    training_model, tokens = training_model_of(True), torch.tensor([2, 3, 7])
    batch = batch_of(training_model, tokens)
    before = training_model(**batch, top=3)
    training_model.restrict_vocabulary(tokens)
    for name, value in training_model(**batch, top=3).items():
        assert torch.equal(value, before[name])


def test_a_target_outside_the_tokens_is_an_error():
    training_model = training_model_of(True)
    batch = batch_of(training_model, torch.tensor([5]))
    training_model.restrict_vocabulary(torch.tensor([2, 3]))
    with pytest.raises(ValueError, match="not among the tokens"):
        training_model(**batch)


def test_tokens_of_the_context_do_not_count():
    examples = [Example.answered([1, 2], [9, 4]), Example.answered([5], [4, 7])]
    assert occurring_tokens(each.labels[1:] for each in examples).tolist() == [4, 7, 9]


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
