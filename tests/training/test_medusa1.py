import pytest
import torch
from models import tiny

from medusa import MedusaModel
from medusa.training import Example, Recipe, evaluate_heads, train_heads


def text(ids):
    ids = list(ids)
    return Example(ids, ids)


def recipe(**changes):
    return Recipe(
        **{"batch_size": 2, "micro_batch_size": 2, "lr": 2.5e-3, "log_every": 1, **changes}
    )


def counting():
    return [text((3 * n + shift) % 61 for n in range(40)) for shift in range(8)]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_heads_of_half_precision_models_are_trained_in_single_precision(dtype, own):
    model = MedusaModel.from_base(tiny(dtype=dtype), num_heads=2, own_lm_head=own)
    losses = train_heads(model, counting(), recipe(epochs=12), progress=False)
    assert losses[-1] < 0.8 * losses[0]
    assert {parameter.dtype for parameter in model.heads.parameters()} == {dtype}


def test_heads_learn_a_text_and_the_backbone_stays_frozen():
    base = tiny(dtype=torch.float32)
    model = MedusaModel.from_base(base, num_heads=3)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    untrained = evaluate_heads(model, counting()).accuracy
    losses = train_heads(model, counting(), recipe(epochs=50), progress=False)
    metrics = evaluate_heads(model, counting())
    assert losses[-1] < 0.5 * losses[0]
    assert all(
        after[0] > max(0.9, start[0])
        for after, start in zip(metrics.accuracy, untrained, strict=True)
    )
    assert all(row == sorted(row) for row in metrics.accuracy)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert all(parameter.grad is None for parameter in base.parameters())
    assert not base.training


def test_training_nothing_is_an_error():
    model = MedusaModel.from_base(tiny(), num_heads=2, num_layers=0, own_lm_head=False)
    with pytest.raises(ValueError, match="no parameters to train"):
        train_heads(model, [text([1, 2, 3, 4])])
    model = MedusaModel.from_base(tiny(), num_heads=2)
    with pytest.raises(ValueError, match="long enough"):
        train_heads(model, [text([1, 2])], progress=False)
    with pytest.raises(ValueError, match="leaves the backbone as it is"):
        train_heads(model, [text([1, 2, 3, 4])], Recipe(method="medusa-2"))
