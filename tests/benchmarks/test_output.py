"""Benchmarks check the output folder before they measure."""

import importlib
import sys

import pytest

MODULES = [
    "batching",
    "code_completion",
    "speed",
    "gpu",
    "heads",
    "memory",
    "precision",
    "profile",
    "replay",
    "training",
    "training_cost",
    "trees",
]


@pytest.mark.parametrize("name", [*MODULES, "warm_up", "wrong_heads"])
def test_a_folder_that_cannot_be_written_is_a_usage_error(name, tmp_path, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", [name, "--output", str(tmp_path / "file" / "results")])
    with pytest.raises(SystemExit, match="2"):
        module.main()
    assert "argument --output" in capsys.readouterr().err
