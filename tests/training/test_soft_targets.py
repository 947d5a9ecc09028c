"""Heads that learn the backbone's distribution of each token."""

import pytest
import torch
from models import tiny

from medusa.core.checks import new_heads
from medusa.training.losses import cross_entropy_sum, soft_loss_sum
from medusa.training.training_model import TrainingModel

HEADS, DECAY = 3, 0.8
TOKENS = torch.tensor([1, 2, 5, 8, 9, 13, 21])


def training_model_of(own, **options):
    torch.manual_seed(0)
    base = tiny(dtype=torch.float32).requires_grad_(False)
    heads = new_heads(base, HEADS, 1, own, bias=True)
    with torch.no_grad():
        heads.w1[0].normal_(std=0.1)
    return TrainingModel(base, heads, DECAY, chunk=4, soft_targets=True, **options)


def texts():
    """Return a batch of two examples; the first begins with a question, the second is padded."""
    ids = torch.tensor([[3, 4, 5, 2, 9, 1, 8, 21, 2, 7], [1, 13, 5, 8, 2, 9, 0, 0, 0, 0]])
    labels = ids.clone()
    labels[0, :3], labels[1, :1], labels[1, 6:] = -100, -100, -100
    segments = torch.ones_like(ids)
    segments[1, 6:] = 0
    positions = torch.arange(10).expand(2, -1)
    return {"input_ids": ids, "labels": labels, "position_ids": positions, "segments": segments}


def slow_loss(model, tokens, overlap):
    """Return eq. 1 from the logits of whole texts, position by position."""
    batch, everything = texts(), torch.arange(model.heads.config.vocab_size)
    tokens = everything if tokens is None else tokens
    sums, counts = torch.zeros(HEADS), torch.zeros(HEADS)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        end = int(labels.ne(-100).nonzero().max()) + 1
        output = model.base(ids[None, :end], output_hidden_states=True)
        base_logits, hidden = output.logits[0], output.hidden_states[-1][0]
        head_logits = model.heads(hidden, model.base.lm_head)
        for place in range(end - 1):
            for head in range(HEADS):
                ahead = place + 2 + head
                if labels[place + 1] == -100 or ahead >= end:
                    continue
                counts[head] += 1
                if labels[ahead] not in tokens:
                    continue
                p = base_logits[ahead - 1][tokens].softmax(-1)
                q = head_logits[head, place][tokens].softmax(-1)
                shared = torch.minimum(p, q).sum()
                sums[head] += -(p * q.log()).sum() + overlap * (1 - shared)
    return sum(DECAY ** (k + 1) * sums[k] / counts[k] for k in range(HEADS))


@pytest.mark.parametrize("overlap", [0.0, 1.5])
@pytest.mark.parametrize("tokens", [None, TOKENS], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize("own", [True, False])
def test_a_head_learns_the_distribution_that_the_backbone_has_at_its_target(own, tokens, overlap):
    model = training_model_of(own, overlap=overlap)
    if tokens is not None:
        model.restrict_vocabulary(tokens)
    slow = slow_loss(model, tokens, overlap)
    grads = torch.autograd.grad(slow, list(model.heads.parameters()))
    loss = model(**texts())["loss"]
    torch.testing.assert_close(loss, slow.detach(), rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(loss, list(model.heads.parameters()))
    torch.testing.assert_close(found, grads, rtol=1e-3, atol=1e-5)


def test_a_sure_backbone_gives_the_usual_cross_entropy():
    logits, targets = torch.randn(5, 11), torch.tensor([3, 0, -100, 10, 7])
    sure = torch.full((5, 11), -1e4)
    sure[torch.arange(5), targets.clamp_min(0)] = 1e4
    soft = soft_loss_sum(logits, sure, targets)
    torch.testing.assert_close(soft, cross_entropy_sum(logits, targets))
