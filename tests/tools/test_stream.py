import random
from dataclasses import replace
from itertools import islice

from tools.demo_model.recipe import FORM, Mixture
from tools.demo_model.stream import drill, stream


def test_the_drill_trains_only_on_tokens_that_occurred_before(tokenizer, recipe):
    lengths = set()
    for rows in drill(recipe, tokenizer, random.Random(0)):
        for row in rows:
            assert any(row.taught)
            pairs = list(zip(row.ids, row.ids[1:], strict=False))
            for place, taught in enumerate(row.taught):
                assert not taught or pairs[place - 1] in pairs[: place - 1]
        lengths.add(len(rows[0].ids))
    assert len(lengths) > 5, "a fixed period would be learnt by position"


def test_batches_hold_single_tasks_of_similar_length(tokenizer, recipe):
    batches = list(
        islice(stream(recipe, tokenizer, pool=512), recipe.drill_steps, recipe.drill_steps + 8)
    )
    for rows in batches:
        lengths = [len(row.ids) for row in rows]
        assert len(rows) * max(lengths) <= recipe.batch_tokens
        assert sum(lengths) > 0.7 * len(lengths) * max(lengths)


def test_only_answers_are_trained_on(tokenizer, recipe):
    recipe = replace(recipe, drill_steps=0, mixtures=((0, replace(FORM, equations=0.0)),))
    (rows,) = islice(stream(recipe, tokenizer, pool=64), 1)
    ends = {tokenizer.eos_token_id}
    for row in rows:
        taught = [token for token, teach in zip(row.ids, row.taught, strict=True) if teach]
        assert taught[-1] in ends
        assert tokenizer.decode(row.ids[: row.taught.index(True)]).endswith("<|assistant|>\n")


def test_mixtures_follow_each_other(tokenizer, recipe):
    recipe = replace(recipe, drill_steps=0, equation_steps=(0, 0))
    only = {
        name: Mixture({name: 1.0}, equations=0.0, conversations=0.0) for name in ("tables", "math")
    }
    recipe = replace(recipe, mixtures=((0, only["tables"]), (2, replace(only["math"], drill=0.5))))
    texts = [
        [tokenizer.decode(row.ids) for row in rows]
        for rows in islice(stream(recipe, tokenizer, pool=32), 4)
    ]
    assert all("| ---" in text for rows in texts[:2] for text in rows)
    later = [text for rows in texts[2:] for text in rows]
    assert 0 < sum("Answer:" in text for text in later) < len(later), (
        "half of the rows are the drill's"
    )


def test_some_steps_have_only_equations(tokenizer, recipe):
    recipe = replace(recipe, drill_steps=0, equation_steps=(0, 2))
    for rows in islice(stream(recipe, tokenizer, pool=16), 2):
        for row in rows:
            for line in tokenizer.decode(row.ids).splitlines():
                asked, result = line.split(" = ")
                assert eval(asked) == int(result)
            taught = [token for token, teach in zip(row.ids, row.taught, strict=True) if teach]
            assert set(tokenizer.decode(taught)) <= set("0123456789 ")


def test_a_resumed_run_continues_with_the_same_batches(tokenizer, recipe):
    recipe = replace(recipe, drill_steps=2, equation_steps=(3, 4))
    recipe = replace(recipe, mixtures=((0, FORM), (5, replace(FORM, varied=0.0))))
    whole = list(islice(stream(recipe, tokenizer, pool=16), 8))
    for start in range(8):
        assert list(islice(stream(recipe, tokenizer, start, pool=16), 8 - start)) == whole[start:]
