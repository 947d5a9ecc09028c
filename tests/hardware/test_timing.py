import time

import pytest
import torch

from medusa.hardware.timing import interleaved, paired_ratios, rotated, spread, timed


def test_a_call_is_timed_and_its_result_kept():
    run = timed(lambda: time.sleep(0.01) or "result", torch.device("cpu"))
    assert run.result == "result"
    assert 0.01 <= run.seconds < 1


def test_every_round_starts_one_later():
    assert list(rotated("abc", 4)) == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert next(rotated("abc", 1, first=5)) == list("cab")


def test_calls_take_turns_and_warm_up_rounds_do_not_count():
    order = []
    calls = {name: lambda name=name: order.append(name) or len(order) for name in "ab"}
    results = interleaved(calls, 2, warm_up=1, first=0)
    assert "".join(order) == "baabba"
    assert results == {"a": [3, 6], "b": [4, 5]}


def test_ratios_are_of_the_same_round():
    ratios = paired_ratios([2.0, 6.0], [1.0, 2.0])
    assert ratios == [2.0, 3.0]
    assert spread(ratios) == (2.0, 3.0)
    with pytest.raises(ValueError, match="zip"):
        paired_ratios([1.0], [1.0, 2.0])
