import pytest
import torch
from models import ScriptedHeads, prompt, tiny

from medusa import MedusaModel
from medusa.evaluation import METHODS, Comparison, Prompt, Run, Totals, compare


def comparison(category="sql", judge=lambda ids: True, ids=(1, 2, 3, 4, 5)):
    def run(steps, seconds, step):
        phases = {"heads": 0.2 * seconds, "verify": 0.7 * seconds, "accept": 0.1 * seconds}
        return Run(list(ids), steps, 0.5, seconds, (step,) * steps, phases)

    runs = {
        "plain": [run(4, 4.0, 1.0)] * 3,
        "medusa": [run(2, 2.0, 1.25), run(2, 1.0, 1.25), run(2, 9.0, 1.25)],
        "generate": [run(4, 8.0, 0.0)] * 3,
    }
    return Comparison(Prompt(category, "", torch.zeros(1, 3, dtype=torch.long), judge), runs)


def test_figures_follow_the_definitions_of_appendix_b():
    figures = Totals([comparison(), comparison("math", lambda ids: False)]).summary(greedy=True)
    assert (figures["tokens"], figures["steps"]) == (8, 4)
    assert figures["acceleration_rate"] == 2.0
    assert figures["overhead"] == 1.25
    assert figures["speedup_over_plain"] == pytest.approx(4.0 / 2.0)
    assert figures["speedup_over_plain_spread"] == pytest.approx((4 / 9, 4.0))
    assert figures["speedup_over_generate"] == pytest.approx(4.0)
    assert figures["speedup_over_plain_with_prefill"] == pytest.approx(4.5 / 2.5)
    assert figures["speedup_over_plain_with_prefill_spread"] == pytest.approx((4.5 / 9.5, 3.0))
    assert figures["first_token_ms"] == {"plain": 500, "medusa": 500, "generate": 500}
    assert figures["tokens_per_second_with_prefill"]["medusa"] == pytest.approx(5 / 2.5)
    assert figures["besides_model"] == pytest.approx(0.1)
    assert figures["correct"] == 0.5
    assert figures["identical"]


def test_the_time_to_the_first_token_is_a_median_over_prompts_and_repeats():
    first = comparison()
    first.runs["medusa"] = [Run([1, 2], 1, seconds, 1.0, (1.0,)) for seconds in (0.1, 0.2, 9.0)]
    second = comparison()
    second.runs["medusa"] = [Run([1, 2], 1, 0.3, 1.0, (1.0,))] * 3
    assert Totals([first, second]).first_token_seconds("medusa") == pytest.approx(0.3)


def test_texts_that_differ_in_one_token_are_not_identical():
    odd = comparison()
    odd.runs["generate"][0] = Run([1, 2, 3, 4, 6], 4, 0.5, 8.0)
    assert not Totals([comparison(), odd]).summary(greedy=True)["identical"]


def test_every_method_runs_interleaved_and_greedy_texts_agree():
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=4)
    text = model.base.generate(prompt(), max_new_tokens=30, do_sample=False)[0].tolist()
    model.heads = ScriptedHeads(model, [text], 0.8)
    prompts = [Prompt("any", "", prompt(), lambda ids: len(ids) == 30)]
    (result,) = compare(model, prompts, {"max_new_tokens": 30, "do_sample": False}, repeats=2)
    assert list(result.runs) == list(METHODS)
    assert all(len(runs) == 2 for runs in result.runs.values())
    assert all(run.ids == text[7:] for runs in result.runs.values() for run in runs)
    assert result.runs["plain"][0].steps == result.runs["generate"][0].steps == 29
    assert result.runs["medusa"][0].steps < 29
    assert 0 < result.runs["medusa"][0].model_seconds < result.runs["medusa"][0].seconds
    assert result.correct
    assert not model.base._forward_hooks
    assert not model.heads._forward_hooks


def test_sampling_is_seeded_per_prompt():
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2)
    prompts = [Prompt("any", "", prompt(), lambda ids: None)]
    arguments = {"max_new_tokens": 10, "do_sample": True, "temperature": 0.7}
    (result,) = compare(model, prompts, arguments, methods=("medusa", "plain"), repeats=2)
    assert result.runs["medusa"][0].ids == result.runs["medusa"][1].ids


def test_other_methods_take_turns_and_replace_those_of_the_same_name():
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2)
    calls = []

    def other(model, ids, arguments):
        calls.append(arguments["max_new_tokens"])
        return Run([7] * 4, 3, 0.5, 0.5)

    prompts = [Prompt("sql", "a request", prompt())]
    others = {"another library": other, "generate": other}
    options = {"methods": ("plain", "medusa", "generate"), "others": others, "repeats": 2}
    (result,) = compare(model, prompts, {"max_new_tokens": 5, "do_sample": False}, **options)
    assert calls == [5] * 4
    assert list(result.runs) == ["plain", "medusa", "generate", "another library"]
    assert not result.identical, "the other method of that name counts"
    summary = Totals([result]).summary(greedy=True)
    assert summary["tokens_per_second_with_prefill"]["another library"] == 4.0
    assert summary["speedup_over_another library_with_prefill"] > 0
