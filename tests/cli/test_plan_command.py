"""`medusa plan`."""

import json

import pytest
from typer.testing import CliRunner

from medusa.cli import app
from medusa.demo.smollm2 import HEADS

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, ["plan", *map(str, arguments)])


def test_a_plan_is_printed_and_written(tmp_path):
    result = run("7b", "--device", "h100", "--trace", HEADS, "--json", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    assert "(best)" in result.stdout
    assert "Break-even: this tree pays from" in result.stdout
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["device"] == "H100"
    assert written["best"]["nodes"] == len(written["best"]["paths"]) + 1
    assert written["sizes"][0]["speedup"] == 1


def test_the_embedded_model_has_a_name():
    result = run("demo", "--trace", "demo", "--max-nodes", 4)
    assert result.exit_code == 0, result.output
    assert "demo on H100" in result.stdout


def test_a_model_that_does_not_fit_is_said():
    result = run("33b", "--device", "RTX-4090", "--max-nodes", 2)
    assert result.exit_code == 0, result.output
    assert "more than the device has" in result.stdout


def trace(folder, **made):
    """Write a tree file of a calibration on an H100, whose steps take 10 and 15 ms."""
    content = {
        "paths": [[0]],
        "accuracies": [[0.5, 0.6]],
        "latency": {"1": 10.0, "2": 15.0},
        "made": {"device": "H100", "batch_size": 1, "contexts": [500, 1500], **made},
    }
    (folder / "medusa_tree.json").write_text(json.dumps(content))
    return folder / "medusa_tree.json"


def test_times_measured_on_the_device_stand_beside_the_predicted_ones(tmp_path):
    written = tmp_path / "a.json"
    result = run("7b", "--max-nodes", 2, "--trace", trace(tmp_path), "--json", written)
    assert result.exit_code == 0, result.output
    assert "measured 2 of these sizes on this device" in " ".join(result.stdout.split())
    found = json.loads(written.read_text())
    assert found["measured_ms"] == {"1": 10.0, "2": 15.0}
    ratio = found["sizes"][1]["overhead"] / 1.5
    assert f"are {ratio:.2f} to {ratio:.2f} times" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "made", [{"device": "A100"}, {"batch_size": 8}, {"contexts": [2000, 3000]}], ids=str
)
def test_times_measured_elsewhere_are_not_compared(tmp_path, made):
    result = run("7b", "--max-nodes", 2, "--trace", trace(tmp_path, **made))
    assert result.exit_code == 0, result.output
    assert "measured" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["7b", "--device", "Z80"], "unknown device Z80"),
        (["nothing"], "nothing is neither 7b"),
        (["7b", "--heads", "9"], "the accuracies are of 5 heads"),
        (["7b", "--trace", "nowhere"], "no such file or folder"),
    ],
)
def test_bad_options_say_what_to_do(arguments, said):
    result = run(*arguments)
    assert result.exit_code != 0
    assert said in " ".join(result.stderr.split())
