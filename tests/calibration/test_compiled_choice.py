"""Calibration as a whole: whether compiled steps are measured, and kept where they are faster."""

import pytest
import torch
from models import prompt, tiny

from medusa import MedusaModel
from medusa.calibration import calibrate as module
from medusa.calibration.calibrate import calibrate
from medusa.calibration.latency import Latency
from medusa.calibration.settings import CalibrationSettings


@pytest.fixture
def model():
    return MedusaModel.from_base(tiny(dtype=torch.float32), num_heads=2)


@pytest.fixture
def timed(monkeypatch):
    """Step times in seconds, by whether the steps are compiled; and what was timed."""
    seconds, calls = {False: 1.0, True: 0.5}, []

    def measure(model, text, trees, *_, **__):
        calls.append(model.compiled)
        times = {len(tree): seconds[model.compiled] * (1 + len(tree) / 100) for tree in trees}
        return Latency({10: [times]})

    monkeypatch.setattr(module, "measure_latency", measure)
    monkeypatch.setattr(MedusaModel, "compile_steps", lambda *_: None)
    monkeypatch.setattr(
        "medusa.core.layers.CompiledLayer.forward", lambda self, *a, **k: self.inner(*a, **k)
    )
    return seconds, calls


def report_of(model, **settings):
    prompts = [prompt(6, seed)[0].tolist() for seed in range(3)]
    arguments = {"max_new_tokens": 8, "do_sample": False}
    return calibrate(
        model, prompts, prompts[:1], arguments, CalibrationSettings(max_nodes=4, **settings)
    )


@pytest.mark.parametrize("faster", [False, True])
def test_both_are_timed_and_the_faster_is_kept(model, timed, faster):
    seconds, calls = timed
    seconds[not faster] = 2.0
    report = report_of(model)
    assert calls == [False, True]
    assert model.compiled is faster
    assert report.calibration.made["compiled"] is faster
    assert report.latency.plain() == pytest.approx(seconds[faster] * 1.01)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_settings_can_say_which_is_timed(model, timed, compiled):
    _, calls = timed
    report = report_of(model, compiled=compiled)
    assert calls == [compiled]
    assert report.calibration.made["compiled"] is compiled


def test_steps_that_cannot_be_compiled_are_not_kept_as_compiled(model, timed):
    model.programs.failed = "no C++ compiler"
    report = report_of(model)
    assert not model.compiled
    assert report.calibration.made["compiled"] is False
