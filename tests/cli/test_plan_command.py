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


def test_a_model_that_does_not_fit_is_said():
    result = run("33b", "--device", "RTX-4090", "--max-nodes", 2)
    assert result.exit_code == 0, result.output
    assert "more than the device has" in result.stdout


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
