"""The embedded model as it is in the repository."""

import json

import pytest
import torch

from medusa import demo
from medusa.demo.inflation import inflated
from medusa.evaluation import METHODS, Bench, BenchSettings, run_bench
from medusa.evaluation.bench_report import ALL, report
from medusa.evaluation.prompts import question_ids, task_questions
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
    methods = {name: METHODS[name] for name in ("plain", "medusa", "generate")}
    found = report(run_bench(Bench(*loaded, methods, BenchSettings()), task_questions(3)))[ALL]
    assert all(figures["identical"] == figures["greedy_turns"] == 18 for figures in found.values())
    assert found["medusa"]["tokens_per_step"] > 2
    assert found["medusa"]["right"] > 0.7


def test_the_model_card_states_the_measured_accuracy_of_the_heads(loaded):
    model, tokenizer = loaded
    stated = json.loads((demo.FOLDER / "heads" / "training.json").read_text())["accuracy"]
    card = (demo.FOLDER / "README.md").read_text()
    assert all(f"{row[0]:.1%}" in card for row in stated)
    arguments = {"max_new_tokens": 256, "do_sample": False}
    prompts = [question_ids(tokenizer, question) for question in task_questions(3)]
    examples = [
        Example.answered(ids, METHODS["medusa"](model, torch.tensor([ids]), arguments).ids)
        for ids in prompts
    ]
    measured = evaluate_heads(model, examples).accuracy
    assert all(abs(one[0] - other[0]) < 0.12 for one, other in zip(measured, stated, strict=True))


def test_inflation_keeps_the_function_and_adds_parameters(loaded):
    model, tokenizer = loaded
    ids = torch.tensor([question_ids(tokenizer, task_questions(1)[0])])
    wide, _ = demo.load(inflate=1000)
    assert wide.base.config.intermediate_size == 1000
    assert wide.base.num_parameters() > model.base.num_parameters()
    with torch.inference_mode():
        torch.testing.assert_close(
            wide.base(ids).logits, model.base(ids).logits, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ValueError, match="cannot inflate"):
        inflated(wide.base, 10)
