"""Certificates of greedy answers."""

import torch
from models import tiny, varied_prompt

from medusa import MedusaModel
from medusa.evaluation.certificate import certificate
from medusa.evaluation.records import QuestionRecord, RunRecord, TurnRecord


def recorded(ids):
    empty = {"step_seconds": [], "phases": {}, "accepted": []}
    return [RunRecord(ids=ids, steps=1, prefill_seconds=1.0, seconds=1.0, text="", **empty)]


def record_of(prompt, temperature=0.0, **answers):
    runs = {name: recorded(ids) for name, ids in answers.items()}
    turn = TurnRecord(
        prompt=prompt, temperature=temperature, runs=runs, right={}, measured_again=[]
    )
    return QuestionRecord(question="q", category="c", turns=[turn])


def test_a_divergence_has_its_place_and_the_margin_of_the_two_logits():
    torch.manual_seed(0)
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2)
    prompt = varied_prompt("llama")[0].tolist()
    ids = model.base.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
    plain = ids[0, len(prompt) :].tolist()
    logits = model.base(ids).logits[0, len(prompt) - 1 : -1].detach()
    second = int(logits[5].topk(2).indices[1])
    other = [*plain[:5], second, 1, 2]

    found = certificate(
        model,
        [
            record_of(prompt, plain=plain, medusa=plain),
            record_of(prompt, plain=plain, medusa=other),
            record_of(prompt, plain=plain, medusa=plain[:3]),
            record_of(prompt, 0.7, plain=plain, medusa=other),
        ],
        "medusa",
        "plain",
    )
    assert (found["greedy_turns"], found["identical"]) == (3, 1)
    differs, shorter = found["divergences"]
    assert differs["position"] == 5
    expected = float(logits[5, plain[5]] - logits[5, second])
    assert abs(differs["margin"] - expected) < 1e-4
    assert (shorter["position"], shorter["margin"]) == (3, 0)
    best = logits.topk(2).values
    assert abs(found["smallest_margin"] - float((best[:, 0] - best[:, 1]).min())) < 1e-4


def test_without_greedy_turns_there_is_nothing_to_certify():
    record = record_of([1], 0.7, plain=[1], medusa=[2])
    assert certificate(None, [record], "medusa", "plain")["smallest_margin"] is None
