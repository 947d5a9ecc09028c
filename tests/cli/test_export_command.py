"""`medusa export`."""

import json

import pytest
from typer.testing import CliRunner

from medusa import MedusaModel
from medusa.cli import app

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, ["export", *map(str, arguments)])


@pytest.mark.parametrize("engine", ["vllm", "tgi", "tensorrt-llm", "original", "common"])
def test_an_export_says_its_size_and_how_to_start_the_engine(folders, tmp_path, engine):
    place = tmp_path / "heads for it"
    result = run(folders / "heads", place, "--to", engine)
    assert result.exit_code == 0, result.output
    assert "2 heads, 0." in result.stdout
    assert "checked by the engine's rules and read back" in result.stdout
    assert str(place) in result.stdout.splitlines()[-1]
    config = json.loads((place / "config.json").read_text())
    assert config["base_model_name_or_path"] == str(folders / "base")
    again = MedusaModel.from_pretrained(place)
    assert again.heads.config.num_heads == 2


def test_what_cannot_be_exported_is_said(folders, tmp_path):
    result = run(folders / "base", tmp_path / "a", "--to", "vllm")
    assert result.exit_code == 1
    assert "holds no Medusa heads" in result.stderr
    result = run(folders / "heads", tmp_path / "a", "--to", "sglang")
    assert result.exit_code == 2
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").touch()
    result = run(folders / "heads", tmp_path / "b", "--to", "vllm")
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
