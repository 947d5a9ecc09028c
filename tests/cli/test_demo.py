import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from medusa.cli import app


def test_a_place_that_cannot_be_written_is_found_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "medusa.cli.side_by_side.load", lambda *_: pytest.fail("the model was loaded")
    )
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "report.json"):
        result = CliRunner().invoke(app, ["demo", "--json", str(place)])
        assert result.exit_code == 1
        assert result.stderr.startswith(f"error: {place} ")


@pytest.mark.slow
def test_the_demo_prints_a_table_and_writes_the_figures(tmp_path):
    file = tmp_path / "demo.json"
    command = [
        sys.executable,
        "-m",
        "medusa.cli",
        "demo",
        "--json",
        str(file),
        "--max-new-tokens",
        "100",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "tokens/step" in done.stdout
    written = json.loads(file.read_text())
    totals, answers = written["figures"], written["answers"]
    assert [each["category"] for each in answers] == [
        "extraction",
        "tables",
        "sql",
        "math",
        "code",
        "writing",
    ]
    for figures in (totals, *(each["figures"] for each in answers)):
        assert list(figures) == ["plain", "medusa", "generate"]
        own = figures["medusa"]
        assert own["tokens_per_step"] > 1
        assert own["speedup_over"]["plain"]["median"] > 0
        assert own["identical"] == own["greedy_turns"]
    assert totals["medusa"]["turns"] == len(answers)
    assert totals["medusa"]["right"] > 0
    assert all(each["text"] and each["prompt"] for each in answers)
