import pytest
import torch
from models import tiny
from torch.nn import functional as F

from medusa import MedusaModel
from medusa.data.chats import Example
from medusa.data.examples import collator
from medusa.training.losses import (
    chunked_sum,
    chunked_sums,
    cross_entropy_sum,
    divergence_sum,
    head_loss_sum,
    medusa1_loss,
)
from medusa.training.training_model import TrainingModel

WEIGHTS = (0.8, 0.64, 0.512)


def test_the_reference_loss_is_equation_one():
    logits = torch.randn(3, 10, 7, dtype=torch.float64)
    targets = torch.randint(0, 7, (10, 3))
    targets[-1, 2] = targets[-2:, 1][1] = -100
    slow = sum(
        weight * F.cross_entropy(logits[k].float(), targets[:, k], ignore_index=-100)
        for k, weight in enumerate(WEIGHTS)
    )
    torch.testing.assert_close(medusa1_loss(logits, targets, 0.8), slow)


def test_the_overlap_term_is_the_probability_that_a_token_is_rejected():
    logits, targets = torch.randn(6, 9), torch.tensor([3, -100, 0, 8, 8, -100])
    known = targets != -100
    q = logits[known].softmax(-1).gather(1, targets[known, None])[:, 0]
    one_hot = F.one_hot(targets[known], 9)
    variation = (logits[known].softmax(-1) - one_hot).abs().sum(-1) / 2
    expected = (-q.log() + 3 * variation).sum()
    torch.testing.assert_close(head_loss_sum(logits, targets, 3.0), expected)
    torch.testing.assert_close(head_loss_sum(logits, targets), cross_entropy_sum(logits, targets))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_chunks_give_the_loss_and_the_gradients_of_whole_logits(size):
    states, weight = torch.randn(10, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    targets = torch.randint(0, 7, (10,))
    targets[3] = -100

    def entropy(states, targets, weight):
        return cross_entropy_sum(states @ weight.T, targets)

    whole = entropy(states, targets, weight)
    expected = torch.autograd.grad(3 * whole, (states, weight))
    found = chunked_sum(entropy, [states, targets], [weight], size)
    torch.testing.assert_close(found, whole)
    (3 * found).backward()
    torch.testing.assert_close((states.grad, weight.grad), expected, rtol=1e-5, atol=1e-5)


def test_stacked_sums_have_gradients_of_their_own():
    states, weights = (
        torch.randn(3, 10, 4, requires_grad=True),
        torch.randn(3, 7, 4, requires_grad=True),
    )
    targets = torch.randint(0, 7, (3, 10))

    def entropy(states, targets, weight):
        return cross_entropy_sum(states @ weight.T, targets)

    scales = torch.tensor(WEIGHTS)
    whole = torch.stack([entropy(*each) for each in zip(states, targets, weights, strict=True)])
    expected = torch.autograd.grad(scales @ whole, (states, weights))
    found = chunked_sums(entropy, [states, targets], [weights], 4)
    torch.testing.assert_close(found, whole)
    (scales @ found).backward()
    torch.testing.assert_close((states.grad, weights.grad), expected, rtol=1e-5, atol=1e-5)


def test_chunks_under_autocast_share_one_cast_of_the_weights():
    torch.manual_seed(0)
    states, weight = torch.randn(10, 8), torch.randn(6, 8, requires_grad=True)
    targets = torch.randint(6, (10,))
    given = []

    def entropy(states, targets, weight):
        given.append(weight)
        return cross_entropy_sum(F.linear(states, weight), targets)

    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_sum(entropy, [states, targets], [weight], 3)
    found.backward()
    assert len(given) == 4
    assert all(each is given[0] and each.dtype == torch.bfloat16 for each in given)
    whole = cross_entropy_sum(F.linear(states, again := weight.detach().requires_grad_()), targets)
    whole.backward()
    torch.testing.assert_close(found, whole, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(weight.grad, again.grad, rtol=5e-2, atol=5e-2)
    assert weight.grad.dtype == torch.float32


def test_divergence_is_kl_from_the_teacher():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float32)
    p, log_q = teacher.softmax(-1), student.log_softmax(-1)
    torch.testing.assert_close(divergence_sum(student, teacher), (p * (p.log() - log_q)).sum())
    assert divergence_sum(teacher, teacher) == pytest.approx(0.0, abs=1e-6)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in (9, 14, 6):
        ids = torch.randint(1, 61, (length,), generator=generator).tolist()
        rows.append([Example.answered(ids[:3], ids[3:])])
    return collator(0)(rows)


def slow_losses(training_model, batch, decay=0.8, weight=1.0):
    """Return the losses of backbone and heads, and eq. 2, from whole logits."""
    base, heads = training_model.base, training_model.heads
    hidden, logits, targets, ahead = [], [], [], []
    for row in range(len(batch["input_ids"])):
        length = int(batch["segments"][row].sum())
        ids, labels = batch["input_ids"][row, :length], batch["labels"][row, :length]
        out = base(ids[None], output_hidden_states=True)
        padded = torch.cat([labels, torch.full((5,), -100)])
        for place in range(length - 1):
            if labels[place + 1] != -100:
                hidden.append(out.hidden_states[-1][0, place])
                logits.append(out.logits[0, place])
                targets.append(labels[place + 1])
                ahead.append(padded[place + 2 : place + 2 + heads.config.num_heads])
    own = F.cross_entropy(torch.stack(logits).float(), torch.stack(targets))
    theirs = medusa1_loss(
        heads(torch.stack(hidden), base.get_output_embeddings()), torch.stack(ahead), decay
    )
    return own, theirs, own + weight * theirs


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite"])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("backbone", [True, False])
def test_both_equations_are_computed_with_their_gradients(batch, name, own, backbone):
    base = tiny(name, dtype=torch.float32, attention="eager", tie_word_embeddings=False)
    model = MedusaModel.from_base(base, num_heads=3, own_lm_head=own)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    base.requires_grad_(backbone)
    training_model = TrainingModel(base, model.heads, chunk=4)
    for_gradients = [each for each in training_model.parameters() if each.requires_grad]
    own_loss, theirs, both = slow_losses(training_model, batch, weight=0.2)
    expected = torch.autograd.grad(both if backbone else theirs, for_gradients, allow_unused=True)
    result = training_model(**batch, weight=0.2)
    torch.testing.assert_close(result["loss"], both if backbone else theirs, rtol=1e-5, atol=1e-5)
    if backbone:
        torch.testing.assert_close(result["parts"][0], own_loss.detach())
    result["loss"].backward()
    for parameter, gradient in zip(for_gradients, expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            found,
            torch.zeros_like(parameter) if gradient is None else gradient,
            rtol=1e-3,
            atol=1e-5,
        )


def test_a_frozen_backbone_has_no_gradient_and_no_dropout(batch):
    base = tiny("gpt2", dtype=torch.float32, resid_pdrop=0.5).requires_grad_(False)
    training_model = TrainingModel(base, MedusaModel.from_base(base, num_heads=2).heads).train()
    first, second = training_model(**batch), training_model(**batch)
    assert torch.equal(first["loss"], second["loss"])
    assert all(parameter.grad is None for parameter in base.parameters())


def test_evaluation_counts_hits_by_rank(batch):
    base = tiny(dtype=torch.float32).requires_grad_(False)
    training_model = TrainingModel(
        base, MedusaModel.from_base(base, num_heads=2).heads, chunk=3
    ).eval()
    with torch.no_grad():
        result, learnt = training_model(**batch, top=4), training_model.positions(**batch)
        logits = training_model.heads(learnt.hidden)
    for head in range(2):
        known = learnt.ahead[:, head] != -100
        order = logits[head].argsort(-1, descending=True)
        ranks = [
            order[place].tolist().index(token)
            for place, token in enumerate(learnt.ahead[:, head])
            if known[place]
        ]
        assert result["hits"][head].tolist() == [
            sum(rank <= top for rank in ranks) for top in range(4)
        ]
        assert result["counts"][1 + head] == len(ranks)
