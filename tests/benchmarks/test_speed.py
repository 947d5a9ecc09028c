"""A whole run of `make bench`'s script, on few prompts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medusa.evaluation import METHODS
from medusa.evaluation.bench_report import ALL

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_all_methods_are_compared_and_the_report_is_written(tmp_path):
    options = "--models embedded --temperatures 0 --per-category 1 --max-new-tokens 12 --repeats 1"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *options.split(), "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text()) == report
    assert "embedded, temperature 0" in file.with_suffix(".txt").read_text()
    assert set(report["results"]) == {"embedded, T=0"}
    greedy = report["results"]["embedded, T=0"]["figures"][ALL]
    assert set(greedy) == set(METHODS)
    assert {name for name, own in greedy.items() if own["identical"] < own["turns"]} == set()
    assert greedy["medusa"]["tokens_per_step"] > 1.5
