"""The embedded model as it is in the repository."""

import json

import pytest
import torch

from medusa import demo
from medusa.demo.inflation import inflated
from medusa.demo.tasks import CHECKED
from medusa.evaluation.measure import compare
from medusa.evaluation.prompts import held_out
from medusa.training import Example, evaluate_heads


@pytest.fixture(scope="module")
def loaded():
    return demo.load()


def test_the_model_is_small_enough_for_a_repository(loaded):
    assert sum(file.stat().st_size for file in demo.FOLDER.rglob("*") if file.is_file()) < 30e6
    assert 4e6 < loaded[0].base.num_parameters() < 12e6
    assert loaded[0].base.config.max_position_embeddings >= 2048
    assert loaded[0].heads.config.num_heads == 5


def test_every_digit_is_a_token_and_any_text_round_trips(loaded):
    tokenizer = loaded[1]
    assert len(tokenizer("2048").input_ids) == 4
    for text in ("def f(x):\n    return x", "Grüße, 世界 🐍", "  two  spaces\t"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_medusa_gives_the_base_models_answers_and_most_are_correct(loaded):
    model, tokenizer = loaded
    arguments = {"max_new_tokens": 256, "do_sample": False}
    results = list(
        compare(
            model,
            held_out(tokenizer, 3),
            arguments,
            methods=("plain", "medusa", "generate"),
            repeats=1,
        )
    )
    assert all(each.identical for each in results)
    tokens = sum(each.runs["medusa"][0].tokens for each in results)
    steps = sum(each.runs["medusa"][0].steps for each in results)
    assert tokens / steps > 2
    verdicts = [each.correct for each in results if each.prompt.category in CHECKED]
    assert sum(verdicts) / len(verdicts) > 0.7


def test_the_model_card_states_the_measured_accuracy_of_the_heads(loaded):
    model, tokenizer = loaded
    stated = json.loads((demo.FOLDER / "heads" / "training.json").read_text())["accuracy"]
    card = (demo.FOLDER / "README.md").read_text()
    assert all(f"{row[0]:.1%}" in card for row in stated)
    prompts = held_out(tokenizer, 3)
    (*results,) = compare(
        model, prompts, {"max_new_tokens": 256, "do_sample": False}, methods=("medusa",), repeats=1
    )
    examples = [
        Example.answered(each.prompt.ids[0].tolist(), each.runs["medusa"][0].ids)
        for each in results
    ]
    measured = evaluate_heads(model, examples).accuracy
    assert all(abs(one[0] - other[0]) < 0.12 for one, other in zip(measured, stated, strict=True))


def test_inflation_keeps_the_function_and_adds_parameters(loaded):
    model, tokenizer = loaded
    ids = held_out(tokenizer, 1)[0].ids
    wide, _ = demo.load(inflate=1000)
    assert wide.base.config.intermediate_size == 1000
    assert wide.base.num_parameters() > model.base.num_parameters()
    with torch.inference_mode():
        torch.testing.assert_close(
            wide.base(ids).logits, model.base(ids).logits, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match="cannot inflate"):
        inflated(wide.base, 10)
