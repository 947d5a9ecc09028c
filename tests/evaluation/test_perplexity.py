"""Perplexity of answers under the backbone."""

import math

import pytest
import torch
from models import prompt, tiny

from medusa import MedusaModel
from medusa.evaluation import perplexity as module
from medusa.evaluation.bench_report import ALL, report
from medusa.evaluation.methods import METHODS, Run
from medusa.evaluation.perplexity import loss, with_losses
from medusa.evaluation.records import QuestionRecord, RunRecord, TurnRecord


@pytest.fixture(scope="module")
def model():
    return MedusaModel.from_base(tiny("llama"), 2)


def by_hand(model, ids, answer):
    """Sum -log p token by token, each after a forward over the text before it."""
    total, text = 0.0, list(ids)
    for token in answer:
        with torch.inference_mode():
            logits = model.base(torch.tensor([text])).logits[0, -1]
        total -= float(logits.log_softmax(-1)[token])
        text.append(token)
    return total


def record_of(ids, **runs):
    kept = {name: [RunRecord.of(run)] for name, run in runs.items()}
    shape = {"prompt": ids, "temperature": 0.0, "right": {}, "measured_again": []}
    return QuestionRecord(question="q", category="c", turns=[TurnRecord(runs=kept, **shape)])


def test_the_loss_is_that_of_each_token_after_the_text_before(model, monkeypatch):
    ids, answer = prompt(5)[0].tolist(), [3, 1, 4, 1, 5, 9, 2]
    expected = by_hand(model, ids, answer)
    assert loss(model, ids, answer) == pytest.approx(expected, rel=1e-6)
    assert loss(model, ids, answer[:1]) == pytest.approx(by_hand(model, ids, answer[:1]))
    monkeypatch.setattr(module, "CHUNK", 3)
    assert loss(model, ids, answer) == pytest.approx(expected, rel=1e-6)


def test_a_method_s_perplexity_is_a_mean_over_tokens(model):
    ids, other = prompt(5)[0].tolist(), prompt(6, seed=1)[0].tolist()
    greedy = METHODS["plain"](model, prompt(5), {"max_new_tokens": 8, "do_sample": False})
    worse = Run([7, 8, 9], 2, 0.1, 1.0)
    served = Run([], 0, 0.1, 1.0, text="a", counted=3)
    records = [
        record_of(ids, plain=greedy, worse=worse, served=served),
        record_of(other, plain=Run([1], 0, 0.1, 1.0), worse=worse, served=served),
    ]
    assert report(records)[ALL]["plain"]["perplexity"] is None, "it is computed if asked for"
    counted = []
    found = report(with_losses(model, records, counted.append))
    sums = by_hand(model, ids, greedy.ids) + by_hand(model, other, [1])
    assert found[ALL]["plain"]["perplexity"] == pytest.approx(math.exp(sums / 9))
    assert found[ALL]["worse"]["perplexity"] > found[ALL]["plain"]["perplexity"]
    assert found[ALL]["served"]["perplexity"] is None, "a server tells no tokens"
    assert counted == [1, 1]
