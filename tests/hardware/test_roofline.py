"""Measured products, the roof above them, and the speedups that it allows."""

import pytest
import torch

from medusa.hardware.devices import DEVICES, Device, find_device, measured_device
from medusa.hardware.operators import LLAMA, ModelShape, linear
from medusa.hardware.roofline import FAMILIES, Setting, fits, measure, product, settings
from medusa.hardware.simulator import (
    best_candidates,
    block_seconds,
    paper_acceleration,
    speedup,
)

SMALL = ModelShape(32, 64, 2, 4, 2, 8, 100)
CPU = torch.device("cpu")
A100 = DEVICES["A100-80GB-PCIe"]


def test_a_roof_is_memory_up_to_the_ridge_and_computing_after_it():
    device = Device("x", bandwidth=10.0, peak=100.0, memory=1e9)
    assert device.ridge == 10
    assert [device.attainable(each) for each in (1, 10, 1000)] == [10, 100, 100]
    read, computed = linear(1, 10, 10), linear(1000, 10, 10)
    assert device.seconds(read) == read.bytes() / 10
    assert device.seconds(computed) == max(computed.flops / 100, computed.bytes() / 10)


def test_devices_are_found_by_name():
    assert find_device("h100") is DEVICES["H100"]
    with pytest.raises(ValueError, match="unknown device H1000: take one of A100-80GB-PCIe"):
        find_device("H1000")


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr("medusa.hardware.devices.MATRIX_SIZE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr("medusa.hardware.devices.STREAM_BYTES", 1 << 16)
    device = measured_device(torch.float32)
    assert device.size == 4
    assert device.bandwidth > 0
    assert device.peak > 0
    assert device.memory > 1e8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [SMALL, ModelShape(32, 64, 2, 4, 4, 8, 100)])
def test_a_measured_product_computes_what_its_work_says(family, shape):
    setting = Setting(family, "medusa", batch=3, queries=5, context=7)
    work = setting.work(shape)
    call = product(setting, shape, CPU, torch.float32)
    inputs, result = call.args[:2], call()
    assert sum(each.numel() for each in inputs) + result.numel() == work.numbers
    assert 2 * inputs[0].shape[-1] * result.numel() == work.flops
    point = measure(setting, shape, CPU, torch.float32)
    assert point.intensity == work.flops / (4 * work.numbers)
    assert point.rate == pytest.approx(work.flops / point.seconds)
    assert point.to_json()["queries"] == 5


def test_the_grid_has_all_phases_and_leaves_out_what_is_too_large():
    grid = list(settings([1, 64], [128, 8192], [1, 64]))
    assert len(grid) == len(set(grid)) == 12 + 2 * 4 + 8
    assert {each.phase for each in grid} == {"prefill", "decoding", "medusa"}
    large = Setting("qk/pv", "prefill", 64, 8192, 8192)
    assert not fits(large, LLAMA["7b"], A100)
    assert fits(Setting("qk/pv", "decoding", 64, 1, 8192), LLAMA["7b"], A100)


def test_one_candidate_is_plain_decoding():
    assert paper_acceleration(1) == 1
    assert paper_acceleration(64) == pytest.approx(2.98, abs=0.01)
    assert speedup(LLAMA["7b"], A100, 4, 1, 1024) == 1


def test_the_findings_of_the_paper_hold():
    shape = LLAMA["7b"]
    gains = [speedup(shape, A100, 1, count, 1024) for count in (16, 32, 64)]
    assert gains == sorted(gains), "at batch 1 the gain grows up to 64"
    at_64 = [speedup(shape, A100, batch, 64, 1024) for batch in (1, 4, 16, 64)]
    assert at_64 == sorted(at_64, reverse=True)
    assert at_64[0] > 2.5
    assert at_64[-1] < 1, "products are bound by computing"
    best = [best_candidates(shape, A100, 4, s, range(1, 257)) for s in (128, 1024, 8192)]
    assert all(35 < count < 50 for count, _ in best), "hardly moved by the context"
    assert [most for _, most in best] == sorted((most for _, most in best), reverse=True)


def test_a_block_takes_the_time_of_its_products():
    works = LLAMA["7b"].block(2, 3, 100)
    assert list(works) == ["q", "k", "v", "qk", "pv", "up", "gate", "down"]
    assert block_seconds(LLAMA["7b"], A100, 2, 3, 100) == pytest.approx(
        sum(map(A100.seconds, works.values()))
    )
