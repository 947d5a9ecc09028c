"""The decoding methods that are compared."""

import pytest
import torch
from models import ScriptedHeads, prompt, tiny

from medusa import MedusaModel
from medusa.evaluation import METHODS

NEW = 30


@pytest.fixture(scope="module")
def scripted():
    """A model whose heads are right four times of five, and its greedy text."""
    model = MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=4)
    text = model.base.generate(prompt(), max_new_tokens=NEW, do_sample=False)[0].tolist()
    model.heads = ScriptedHeads(model, [text], 0.8)
    return model, text[prompt().shape[1] :]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_writes_the_greedy_text(scripted, name):
    model, text = scripted
    run = METHODS[name](model, prompt(), {"max_new_tokens": NEW, "do_sample": False})
    assert run.ids == text
    assert run.tokens == NEW - 1 == sum(run.accepted)
    assert len(run.step_seconds) == run.steps
    assert (run.steps == NEW - 1) == (name in ("plain", "generate", "generate_packed"))
    assert run.total_seconds == run.prefill_seconds + run.seconds
    assert not model.base._forward_hooks
    assert not model.heads._forward_hooks


def test_the_model_s_share_of_a_step_is_known_for_this_library_alone(scripted):
    arguments = {"max_new_tokens": NEW, "do_sample": False}
    own, other = (
        METHODS[name](scripted[0], prompt(), arguments) for name in ("medusa", "generate")
    )
    assert 0 < own.model_seconds < own.seconds
    assert other.model_seconds is None
