import argparse
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.table import Table

from benchmarks import harness
from medusa.hardware.timing import Timed


@pytest.fixture
def options(tmp_path):
    return argparse.Namespace(output=tmp_path / "results")


@pytest.fixture
def report():
    report = harness.new_report(figure=1.5)
    report["provenance"] |= {"date": "2026-01-02", "device": "A (fast) CPU"}
    return report


def test_every_script_has_threads_and_output(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["script"])
    threads = torch.get_num_threads()
    options = harness.parse_arguments(harness.argument_parser("text", rounds=3))
    assert torch.get_num_threads() == options.threads == harness.THREADS
    torch.set_num_threads(threads)
    assert options.rounds == 3
    assert options.output == harness.RESULTS, "not relative to the working directory"


def test_reports_are_dated_and_named_after_the_device(options, report):
    file = harness.publish(options, report, "kind", "a line")
    assert file.name == "2026-01-02-a-fast-cpu.kind.json"
    assert json.loads(file.read_text())["figure"] == 1.5
    file = harness.publish_for_device(options, report, "kind")
    assert file.name == "kind-a-fast-cpu.json"


def test_tables_are_written_beside_the_report(options, report):
    table = Table("heading")
    table.add_row("cell")
    file = harness.write_with_tables(options.output, report, [table], "compiled")
    assert file.name == "2026-01-02-a-fast-cpu-compiled.json"
    provenance, text = file.with_suffix(".txt").read_text().split("\n", 1)
    assert json.loads(provenance) == report["provenance"]
    assert "heading" in text
    assert "cell" in text


def test_medians_of_timed_calls():
    runs = {"a": [Timed(None, seconds) for seconds in (1.0, 5.0, 2.0)]}
    assert harness.medians(harness.seconds_of(runs)) == {"a": 2.0}


def test_no_script_imports_another():
    folder = Path(harness.__file__).parent
    shared = {"gguf_files", "harness", "judge", "llama_cpp", "load", "models", "paper", "servers"}
    for file in folder.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        imported = set(re.findall(r"^from (?:\.|benchmarks\.)(\w+) import", text, re.MULTILINE))
        assert imported <= shared, f"{file.name} imports {sorted(imported - shared)}"
