import math

import pytest
import torch
from models import tiny
from torch.nn import functional as F

from medusa import MedusaModel
from medusa.training import Example, TrainingConfig, evaluate_heads, medusa1_loss, train_heads
from medusa.training.medusa1 import hidden_states


def test_the_loss_is_equation_one():
    logits = torch.randn(3, 10, 7, dtype=torch.float64)
    targets = torch.randint(0, 7, (10, 3))
    targets[-1, 2] = targets[-2:, 1][1] = -100
    slow = sum(0.8 ** (k + 1) * F.cross_entropy(logits[k].float(), targets[:, k], ignore_index=-100) for k in range(3))
    torch.testing.assert_close(medusa1_loss(logits, targets, 0.8), slow)


def test_head_k_is_taught_the_token_k_plus_two_ahead_inside_the_answer_only():
    model = MedusaModel.from_base(tiny(), num_heads=3)
    ids = [5, 6, 7, 8, 9, 10]
    data = hidden_states(model, [Example(ids, answer_start=3)])
    assert data.targets.tolist() == [[9, 10, -100], [10, -100, -100]]
    torch.testing.assert_close(data.hidden, model.hidden_states(torch.tensor([ids]))[0, 2:4])


def test_a_text_without_a_prompt_is_learnt_from_its_first_token():
    model = MedusaModel.from_base(tiny(), num_heads=2)
    first, other = (hidden_states(model, [Example([5, 6, 7, 8], start), Example([9, 8, 7, 6])]) for start in (0, 1))
    assert torch.equal(first.targets, other.targets)
    assert len(first.hidden) == len(first.targets)
    with pytest.raises(ValueError, match="answer_start"):
        Example([5, 6, 7], answer_start=-1)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_train_in_single(dtype, own):
    model = MedusaModel.from_base(tiny(dtype=dtype), num_heads=2, own_lm_head=own)
    texts = [Example([(3 * n + shift) % 61 for n in range(40)]) for shift in range(8)]
    losses = train_heads(model, texts, TrainingConfig(epochs=20, batch_size=64, lr=1e-2), progress=False)
    assert losses[-1] < 0.8 * losses[0]
    assert {parameter.dtype for parameter in model.heads.parameters()} == {dtype}


def test_padding_changes_nothing():
    model = MedusaModel.from_base(tiny(), num_heads=2)
    short, long = Example([5, 6, 7, 8]), Example(list(range(1, 30)))
    alone, together = hidden_states(model, [short]), hidden_states(model, [short, long])
    torch.testing.assert_close(together.hidden[: len(alone.hidden)], alone.hidden)


def test_heads_learn_a_text_and_the_backbone_stays_frozen():
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=3)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    texts = [Example([(3 * n + shift) % 61 for n in range(40)]) for shift in range(8)]
    untrained = evaluate_heads(model, texts).accuracy
    losses = train_heads(model, texts, TrainingConfig(epochs=60, batch_size=64, lr=1e-2), progress=False)
    metrics = evaluate_heads(model, texts)
    assert losses[-1] < 0.5 * losses[0]
    assert all(after[0] > max(0.9, start[0]) for after, start in zip(metrics.accuracy, untrained, strict=True))
    assert all(row == sorted(row) for row in metrics.accuracy)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_shared_lm_heads_train_too():
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2, own_lm_head=False)
    losses = train_heads(model, [Example(list(range(1, 40)))], TrainingConfig(epochs=40, lr=1e-2), progress=False)
    assert losses[-1] < losses[0]
    assert model.base.get_output_embeddings().weight.requires_grad


def test_nothing_to_train_is_said():
    model = MedusaModel.from_base(tiny(), num_heads=2, num_layers=0, own_lm_head=False)
    with pytest.raises(ValueError, match="no parameters to train"):
        train_heads(model, [Example([1, 2, 3, 4])])
    with pytest.raises(ValueError, match="long enough"):
        hidden_states(model, [Example([1, 2])])


def test_the_rate_warms_up_and_falls_along_a_cosine():
    config = TrainingConfig(warmup=0.1)
    rates = [config.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[-1] < 0.01


@pytest.mark.parametrize("field", ["epochs", "batch_size", "lr", "decay"])
def test_impossible_settings_are_named(field):
    with pytest.raises(ValueError, match=field):
        TrainingConfig(**{field: 0})
