"""The heads' loss over the tokens that occur in the data."""

import pytest
import torch
from models import tiny
from torch.nn import functional as F

from medusa.core.model import new_heads
from medusa.data.chats import Example
from medusa.training.training_model import TrainingModel
from medusa.training.vocabulary import occurring_tokens

HEADS, POSITIONS = 2, 13


def student_of(own, **config):
    torch.manual_seed(0)
    base = tiny(dtype=torch.float32, **config).requires_grad_(False)
    heads = new_heads(base, HEADS, 1, own, bias=True)
    with torch.no_grad():
        heads.w1[0].normal_(std=0.1)
    return TrainingModel(base, heads, decay=0.8)


def batch_of(student, tokens):
    hidden = torch.randn(POSITIONS, student.heads.config.hidden_size)
    targets = tokens[torch.randint(len(tokens), (POSITIONS, 1 + HEADS))]
    targets[-1, 2] = -100
    return {"hidden": hidden, "targets": targets}


def gradients(student, batch):
    student.zero_grad()
    told = student(**batch)
    told["loss"].backward()
    return told["loss"].detach(), [
        parameter.grad.clone() for parameter in student.heads.parameters()
    ]


@pytest.mark.parametrize("own", [True, False])
def test_it_is_the_cross_entropy_of_the_logits_of_these_tokens_and_trains_no_others(own):
    student, tokens = student_of(own), torch.tensor([2, 3, 7, 19, 30])
    batch = batch_of(student, tokens)
    student.restrict_vocabulary(tokens)
    loss, found = gradients(student, batch)

    logits = student.heads(batch["hidden"], student.base.lm_head)[..., tokens]
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
    student.zero_grad()
    whole.backward()
    torch.testing.assert_close(loss, whole.detach())
    for grad, parameter in zip(found, student.heads.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-6)
    if own:
        rest = torch.ones(student.heads.config.vocab_size, dtype=torch.bool)
        rest[tokens] = False
        w2 = next(
            grad
            for grad, each in zip(found, student.heads.parameters(), strict=True)
            if each is student.heads.w2
        )
        assert not w2[:, rest].any()
        assert w2[:, ~rest].any()


@pytest.mark.parametrize("own", [True, False])
def test_over_all_tokens_it_is_the_usual_loss(own):
    student = student_of(own)
    every = torch.arange(student.heads.config.vocab_size)
    batch = batch_of(student, every)
    loss, grads = gradients(student, batch)
    student.restrict_vocabulary(every)
    again, others = gradients(student, batch)
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(others, grads, rtol=1e-5, atol=1e-5)


def test_evaluations_are_over_the_whole_vocabulary():
    student, tokens = student_of(True), torch.tensor([2, 3, 7])
    batch = batch_of(student, tokens)
    before = student(**batch, top=3)
    student.restrict_vocabulary(tokens)
    for name, value in student(**batch, top=3).items():
        assert torch.equal(value, before[name])


def test_a_target_from_elsewhere_is_refused():
    student = student_of(True)
    batch = batch_of(student, torch.tensor([5]))
    student.restrict_vocabulary(torch.tensor([2, 3]))
    with pytest.raises(ValueError, match="not among the tokens"):
        student(**batch)


def test_tokens_that_are_only_read_do_not_count():
    examples = [Example.answered([1, 2], [9, 4]), Example.answered([5], [4, 7])]
    assert occurring_tokens(examples).tolist() == [4, 7, 9]
