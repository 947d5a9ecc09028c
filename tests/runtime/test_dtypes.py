import json

import pytest
import torch

from medusa.runtime import dtypes


@pytest.fixture
def ratio(tmp_path, monkeypatch):
    """A cache folder, and a measured ratio that tests set; `calls` counts measurements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {"ratio": 1.0, "calls": 0}

    def measured(dtype):
        found["calls"] += 1
        return found["ratio"]

    monkeypatch.setattr(dtypes, "measured_ratio", measured)
    return found


@pytest.mark.parametrize(("measured", "fast"), [(0.7, torch.bfloat16), (2.2, torch.float32)])
def test_a_checkpoint_keeps_its_dtype_where_that_is_fast(ratio, measured, fast):
    ratio["ratio"] = measured
    assert dtypes.fast_dtype(torch.bfloat16) == fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wider_numbers_are_not_measured(ratio, dtype):
    assert dtypes.fast_dtype(dtype) == dtype
    assert not ratio["calls"]


def test_a_machine_measures_once(ratio, tmp_path):
    for _ in range(2):
        dtypes.fast_dtype(torch.bfloat16)
    assert ratio["calls"] == 1
    dtypes.fast_dtype(torch.float16)
    assert ratio["calls"] == 2
    stored = json.loads((tmp_path / "medusa" / "products.json").read_text())["ratios"]
    assert len(stored) == 2


def test_a_broken_file_and_a_missing_folder_are_measured_again(ratio, tmp_path, monkeypatch):
    dtypes.fast_dtype(torch.bfloat16)
    (tmp_path / "medusa" / "products.json").write_text("{")
    dtypes.fast_dtype(torch.bfloat16)
    assert ratio["calls"] == 2
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    dtypes.fast_dtype(torch.bfloat16)
    assert ratio["calls"] == 3


def test_the_ratio_of_a_dtype_is_that_of_its_products():
    assert 0.01 < dtypes.measured_ratio(torch.bfloat16) < 100
    assert dtypes.measured_ratio(torch.float64) > 0.5
