"""`medusa roofline`."""

import json

import pytest
from typer.testing import CliRunner

from medusa.calibration.plan import traced_acceleration
from medusa.cli import app
from medusa.hardware.devices import DEVICES, Device
from medusa.hardware.operators import CANDIDATES, ModelShape, intensity_table
from medusa.hardware.simulator import overhead

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, ["roofline", *map(str, arguments)])


@pytest.fixture
def shape(tmp_path):
    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize("number", [6, 7, 8])
def test_a_table_of_the_paper_is_printed_and_written(tmp_path, number):
    result = run("--table", number, "--json", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["columns"] == list(CANDIDATES)
    expected = intensity_table(number)
    assert written["rows"] == {str(row): cells for row, cells in expected.items()}
    assert f"{expected[128 if number == 6 else 1][1]:.2f}" in result.stdout


def test_speedups_of_a_model_on_a_device(shape, tmp_path):
    result = run("--model", shape, "--device", "h100", "--json", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    assert "H100: 3,350 GB/s" in result.stdout
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["device"] == "H100"
    assert all(len(row["speedups"]) == len(CANDIDATES) for row in written["rows"])
    assert {row["speedups"][0] for row in written["rows"]} == {1}


def test_recorded_accuracies_replace_the_papers_logarithm_and_are_drawn(shape, tmp_path):
    pytest.importorskip("matplotlib")
    accuracies = [[0.5, 0.75], [0.5, 0.75]]
    trace = tmp_path / "medusa_tree.json"
    trace.write_text(json.dumps({"paths": [[0]], "accuracies": accuracies}))
    files = {"--json": tmp_path / "a.json", "--png": tmp_path / "a.png", "--trace": trace}
    result = run("--model", shape, *(part for pair in files.items() for part in pair))
    assert result.exit_code == 0, result.output
    assert files["--png"].read_bytes().startswith(b"\x89PNG")
    plan = traced_acceleration(accuracies)
    assert [plan(1), plan(2), plan(3)] == pytest.approx([1, 1.5, 1.75])
    row = json.loads(files["--json"].read_text())["rows"][0]
    place, config = DEVICES["A100-80GB-PCIe"], json.loads((shape / "config.json").read_text())
    cost = overhead(ModelShape.of(config), place, 1, 16, 1024)
    assert row["speedups"][1] == pytest.approx(plan(16) / cost)


def test_products_are_measured_and_drawn(shape, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    device = Device("here", bandwidth=1e10, peak=1e11, memory=1e10)
    monkeypatch.setattr("medusa.cli.roofline_view.measured_device", lambda dtype: device)
    monkeypatch.setattr("medusa.cli.roofline_view.BATCHES", (1, 2))
    monkeypatch.setattr("medusa.hardware.roofline.LARGEST_SECONDS", 1e-4)
    files = {"--json": tmp_path / "a.json", "--png": tmp_path / "a.png"}
    result = run("--measure", "--model", shape, *(part for pair in files.items() for part in pair))
    assert result.exit_code == 0, result.output
    points = json.loads(files["--json"].read_text())["points"]
    assert {point["family"] for point in points} == {"qkv", "qk/pv", "up/gate/down"}
    assert all(point["rate"] > 0 for point in points)
    assert files["--png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "8b"], "8b is neither 7b, 13b, 33b, demo, smollm2 nor a config.json"),
        (["--device", "Z80"], "unknown device Z80"),
        (["--table", "6", "--png", "a.png"], "leave out --measure and --png"),
        (["--table", "6", "--measure"], "leave out --measure"),
        (["--measure", "--trace", "heads"], "leave out --measure"),
        (["--trace", "nowhere"], "no such file or folder"),
        (["--table", "5"], "greater than or equal to 6"),
    ],
)
def test_bad_options_say_what_to_do(arguments, said):
    result = run(*arguments)
    assert result.exit_code != 0
    assert said in " ".join(result.stderr.replace("│", "").split())


@pytest.mark.parametrize(("content", "said"), [("{", "is not JSON"), ("[]", "hold an object")])
def test_a_broken_config_is_named(tmp_path, content, said):
    (tmp_path / "config.json").write_text(content)
    result = run("--model", tmp_path)
    assert result.exit_code == 1
    assert said in result.stderr.replace("\n", " ")
