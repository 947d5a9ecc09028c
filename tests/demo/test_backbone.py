import random
from dataclasses import replace
from itertools import islice

import pytest
import torch

from medusa.demo.backbone import (
    FORM,
    Foresight,
    Mixture,
    Recipe,
    answer_loss,
    build,
    collate,
    drill,
    foresight_loss,
    new_heads,
    step_loss,
    stream,
)
from medusa.demo.tasks import CATEGORIES, make_task
from medusa.demo.tokenizer import train_tokenizer

RECIPE = replace(Recipe(), vocab_size=1000, layers=2, drill_steps=20)


@pytest.fixture(scope="module")
def tokenizer():
    tasks = [make_task(name, seed, "train") for name in CATEGORIES for seed in range(40)]
    texts = (text for task in tasks for text in (task.prompt, task.answer))
    return train_tokenizer(texts, RECIPE.vocab_size, RECIPE.context)


def test_the_first_head_looks_at_the_previous_token(tokenizer):
    model = build(RECIPE, tokenizer)
    model.set_attn_implementation("eager")
    ids = torch.randint(len(tokenizer), (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        attention = model(ids, output_attentions=True).attentions[0]
    first, second = (attention[:, head].diagonal(-1, 1, 2)[:, 1:] for head in (0, 1))
    assert first.mean() > 0.5
    assert second.mean() < 0.1


def test_what_the_drill_teaches_has_been_said_before(tokenizer):
    lengths = set()
    for rows in drill(RECIPE, tokenizer, random.Random(0)):
        for row in rows:
            assert any(row.taught)
            pairs = list(zip(row.ids, row.ids[1:], strict=False))
            for place, taught in enumerate(row.taught):
                assert not taught or pairs[place - 1] in pairs[: place - 1]
        lengths.add(len(rows[0].ids))
    assert len(lengths) > 5, "a fixed period would be learnt by position"


def test_batches_hold_single_tasks_of_similar_length(tokenizer):
    batches = list(islice(stream(RECIPE, tokenizer, pool=512), RECIPE.drill_steps, RECIPE.drill_steps + 8))
    for rows in batches:
        lengths = [len(row.ids) for row in rows]
        assert len(rows) * max(lengths) <= RECIPE.batch_tokens
        assert sum(lengths) > 0.7 * len(lengths) * max(lengths)


def test_only_answers_are_taught(tokenizer):
    recipe = replace(RECIPE, drill_steps=0, mixtures=((0, replace(FORM, equations=0.0)),))
    (rows,) = islice(stream(recipe, tokenizer, pool=64), 1)
    ends = {tokenizer.eos_token_id}
    for row in rows:
        taught = [token for token, teach in zip(row.ids, row.taught, strict=True) if teach]
        assert taught[-1] in ends
        assert tokenizer.decode(row.ids[: row.taught.index(True)]).endswith("<|assistant|>\n")
    model = build(RECIPE, tokenizer)
    ids, taught = collate(rows, tokenizer.pad_token_id)
    changed = ids.clone()
    changed[:, 1:][~taught[:, 1:]] = 5
    loss, _ = answer_loss(model, ids, taught)
    assert torch.isfinite(loss)
    assert loss != answer_loss(model, changed, taught)[0], "prompts are read"


def test_one_mixture_comes_after_the_other(tokenizer):
    recipe = replace(RECIPE, drill_steps=0, equation_steps=(0, 0))
    only = {name: Mixture({name: 1.0}, equations=0.0, conversations=0.0) for name in ("tables", "math")}
    recipe = replace(recipe, mixtures=((0, only["tables"]), (2, replace(only["math"], drill=0.5))))
    texts = [[tokenizer.decode(row.ids) for row in rows] for rows in islice(stream(recipe, tokenizer, pool=32), 4)]
    assert all("| ---" in text for rows in texts[:2] for text in rows)
    later = [text for rows in texts[2:] for text in rows]
    assert 0 < sum("Answer:" in text for text in later) < len(later), "half of the rows are the drill's"


def test_the_rate_is_a_straight_line_between_its_points():
    recipe = replace(Recipe(), rates=((0, 0.1), (100, 1.0), (300, 0.5), (400, 0.0)))
    assert recipe.steps == 400
    assert [recipe.rate(step) for step in (0, 50, 100, 200, 350)] == pytest.approx([0.1, 0.55, 1.0, 0.75, 0.25])


def test_some_steps_are_equations_alone(tokenizer):
    recipe = replace(RECIPE, drill_steps=0, equation_steps=(0, 2))
    for rows in islice(stream(recipe, tokenizer, pool=16), 2):
        for row in rows:
            for line in tokenizer.decode(row.ids).splitlines():
                asked, result = line.split(" = ")
                assert eval(asked) == int(result)
            taught = [token for token, teach in zip(row.ids, row.taught, strict=True) if teach]
            assert set(tokenizer.decode(taught)) <= set("0123456789 ")


@pytest.fixture
def batch(tokenizer):
    recipe = replace(RECIPE, drill_steps=0, mixtures=((0, replace(FORM, equations=0.0, conversations=0.5)),))
    (rows,) = islice(stream(recipe, tokenizer, pool=64), 1)
    return build(RECIPE, tokenizer), *collate(rows[:8], tokenizer.pad_token_id)


def test_foresight_is_of_the_answers_tokens_after_the_next(batch):
    model, ids, taught = batch
    foresight = Foresight(num_heads=3)
    _, hidden = answer_loss(model, ids, taught)
    loss = foresight_loss(new_heads(model, foresight), hidden, model.lm_head.weight, ids, taught, 0.8)
    log_p = model(ids).logits.log_softmax(-1)  # untrained heads say what the model says
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
    foresight = Foresight(steps=(10, 20), weight=1.0)
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
