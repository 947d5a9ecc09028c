import pytest
import torch

from medusa.hardware import memory
from medusa.hardware.memory import peak_bytes, with_device_peak


def test_the_process_s_peak_stays_after_memory_is_freed():
    before = peak_bytes()
    if before is None:
        pytest.skip("this system does not tell it")
    block = torch.ones(int(before), dtype=torch.uint8)
    assert block.sum()
    during = peak_bytes()
    assert during > 1.5 * before
    del block
    assert peak_bytes() >= during


@pytest.mark.parametrize("content", [None, "Name:\tpython\n"])
def test_a_system_that_does_not_tell_the_peak_gives_none(tmp_path, monkeypatch, content):
    if content is not None:
        (tmp_path / "status").write_text(content)
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert peak_bytes() is None


def test_a_gpu_s_peak_is_that_of_the_call(monkeypatch):
    peaks = [10]
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: peaks.append(0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peaks[-1])
    assert with_device_peak(torch.device("cuda"), lambda: peaks.append(7)) == (None, 7)
    assert peaks == [10, 0, 7]
    assert with_device_peak(torch.device("cpu"), lambda: "x") == ("x", None)
