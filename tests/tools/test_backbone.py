from dataclasses import replace
from itertools import islice
from unittest.mock import patch

import pytest
import torch

from tools.demo_model.backbone import (
    BackboneTrainer,
    answer_loss,
    build,
    foresight_loss,
    new_heads,
    step_loss,
    train_backbone,
)
from tools.demo_model.recipe import FORM, Foresight
from tools.demo_model.stream import collate, stream


def test_the_first_head_looks_at_the_previous_token(tokenizer, recipe):
    model = build(recipe, tokenizer)
    model.set_attn_implementation("eager")
    ids = torch.randint(len(tokenizer), (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        attention = model(ids, output_attentions=True).attentions[0]
    first, second = (attention[:, head].diagonal(-1, 1, 2)[:, 1:] for head in (0, 1))
    assert first.mean() > 0.5
    assert second.mean() < 0.1


@pytest.fixture
def batch(tokenizer, recipe):
    recipe = replace(
        recipe, drill_steps=0, mixtures=((0, replace(FORM, equations=0.0, conversations=0.5)),)
    )
    (rows,) = islice(stream(recipe, tokenizer, pool=64), 1)
    return build(recipe, tokenizer), *collate(rows[:8], tokenizer.pad_token_id)


def test_the_loss_depends_on_the_prompts(batch):
    model, ids, taught = batch
    changed = ids.clone()
    changed[:, 1:][~taught[:, 1:]] = 5
    loss, _ = answer_loss(model, ids, taught)
    assert torch.isfinite(loss)
    assert loss != answer_loss(model, changed, taught)[0]


def test_foresight_loss_is_on_the_tokens_after_the_next(batch):
    model, ids, taught = batch
    foresight = Foresight(num_heads=3)
    _, hidden = answer_loss(model, ids, taught)
    loss = foresight_loss(
        new_heads(model, foresight), hidden, model.lm_head.weight, ids, taught, 0.8
    )
    log_p = model(ids).logits.log_softmax(-1)  # untrained heads predict what the model predicts
    expected = 0.0
    for head in range(3):
        said = [
            -log_p[row, place, ids[row, place + 2 + head]]
            for row in range(len(ids))
            for place in range(ids.shape[1] - 2 - head)
            if taught[row, place + 1] and taught[row, place + 2 + head]
        ]
        expected += 0.8 ** (head + 1) * torch.stack(said).mean()
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)  # bfloat16


def test_the_backbone_learns_from_the_heads_only_at_the_end(batch):
    model, ids, taught = batch
    foresight = Foresight(begin=10, weights=((20, 1.0),))
    heads = new_heads(model, foresight)
    gradients = []
    for step in (9, 19, 20):
        total, loss = step_loss(model, heads, foresight, step, ids, taught)
        assert (total > loss) == (step > 9)
        total.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        assert (heads.w1[0].grad is None) == (step == 9)
        model.zero_grad()
    before, alone, joint = gradients
    assert all(torch.equal(a, b) for a, b in zip(before, alone, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, joint, strict=True))


def trained_at_once_and_resumed(recipe, tokenizer, folder):
    """The figures of a whole training, and of one that was interrupted after two steps."""
    with patch("tools.demo_model.backbone.accuracy", lambda *_: {"sql": 1.0}):
        whole = train_backbone(recipe, tokenizer, folder / "whole", folder / "whole.pt", 1)
        stopped = BackboneTrainer(recipe, tokenizer, folder / "checkpoint.pt")
        stopped.recipe = replace(recipe, rates=((0, 1.0), (2, 0.5)))
        stopped.run(report_every=1, check_every=500)
        resumed = train_backbone(recipe, tokenizer, folder / "resumed", folder / "checkpoint.pt", 1)
    return whole, resumed


def test_an_interrupted_training_goes_on_from_its_checkpoint(tokenizer, recipe, tmp_path):
    recipe = replace(
        recipe,
        intermediate_size=32,
        drill_steps=2,
        batch_tokens=256,
        rates=((0, 1.0), (4, 0.0)),
        foresight=Foresight(num_heads=1, begin=2, weights=((3, 0.1),)),
    )
    whole, resumed = trained_at_once_and_resumed(recipe, tokenizer, tmp_path)
    assert [step for step, _ in whole["losses"]] == [1, 2, 3, 4]
    assert whole["accuracy"] == {"sql": 1.0}
    assert resumed["tokens"] == whole["tokens"]
    assert dict(resumed["losses"]) == pytest.approx(dict(whole["losses"]))
