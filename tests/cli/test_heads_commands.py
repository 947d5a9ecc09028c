"""`medusa convert` and `medusa inspect`, and commands on heads of other formats."""

import json

import foreign
import pytest
from foreign import pickled_heads, raw_heads, whole_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from medusa import CandidateTree, MedusaModel
from medusa.cli import app

runner = CliRunner()


def run(*arguments):
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def heads(folders, tokenizer, tmp_path, monkeypatch):
    """The authors' pickled heads for the base model of `folders`."""
    monkeypatch.setattr(foreign, "VOCAB", len(tokenizer))
    pickled_heads(tmp_path / "heads", raw_heads(), base=str(folders / "base"))
    return tmp_path / "heads"


@pytest.mark.parametrize("name", ["demo", "smollm2"])
def test_the_heads_in_this_package_are_described(name):
    output = run("inspect", name)
    assert "the authors' format, heads alone" in output
    assert "in each head, with biases" in output
    assert "odd" not in output


def test_heads_are_described_on_one_screen(heads):
    lines = run("inspect", heads).splitlines()
    assert len(lines) < 24
    assert lines[0].split() == ["format", "the", "authors'", "format,", "heads", "alone"]
    assert "odd" in lines[-1]
    assert "config.json says medusa_num_heads = 2, the tensors say 3" in lines[-1]


def test_a_model_without_heads_is_not_described(folders):
    result = runner.invoke(app, ["inspect", str(folders / "base")])
    assert result.exit_code == 1
    assert "holds no Medusa heads: it is a model without them" in result.stderr


def test_heads_are_converted_and_used(heads, tmp_path, reference):
    output = run("convert", heads, tmp_path / "native")
    assert f"read {heads}: the authors' format, heads alone" in output
    assert "config.json, custom_generate, medusa_lm_head.safetensors (" in output
    assert "heads: 3; base model, seen from there: " in output
    text = run("generate", tmp_path / "native", "--prompt", "one two", "--max-new-tokens", "8")
    assert reference([{"role": "user", "content": "one two"}], 8) in text


def test_converting_asks_for_a_base_that_is_not_named(heads, folders, tmp_path):
    foreign.write_config(heads, base_model_name_or_path="N/A")
    result = runner.invoke(app, ["convert", str(heads), str(tmp_path / "native")])
    assert result.exit_code == 1
    assert "--base" in result.stderr
    assert not (tmp_path / "native").exists()
    run("convert", heads, tmp_path / "native", "--base", folders / "base")
    assert (
        MedusaModel.from_pretrained(tmp_path / "native", all_heads=True).heads.config.num_heads == 3
    )


def test_converting_replaces_nothing(heads, folders, tmp_path):
    result = runner.invoke(app, ["convert", str(heads), str(folders / "base")])
    assert result.exit_code == 1
    assert "is not empty, and does not hold these heads: name a new folder" in result.stderr


def test_a_whole_model_with_heads_answers(folders, tokenizer, tmp_path, monkeypatch, reference):
    monkeypatch.setattr(foreign, "VOCAB", len(tokenizer))
    base = AutoModelForCausalLM.from_pretrained(folders / "base")
    whole_model(tmp_path, raw_heads(), base, "pickles in shards")
    tokenizer.save_pretrained(tmp_path)
    text = run("generate", tmp_path, "--prompt", "one two", "--max-new-tokens", "8")
    assert reference([{"role": "user", "content": "one two"}], 8) in text


@pytest.mark.filterwarnings("ignore:calibration of .* found no tree that pays")
def test_a_calibration_stores_its_tree_beside_heads_of_any_format(heads, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two\nthree four five\nthe tree\nof candidates\nis verified\n")
    quick = ("--prompts 5 --rounds 3 --context 20 --max-new-tokens 8 --max-nodes 4").split()
    before = (heads / "config.json").read_bytes()
    run("calibrate", heads, "--data", prompts, "--no-compile", *quick)
    tree = CandidateTree(json.loads((heads / "medusa_tree.json").read_text())["paths"])
    assert MedusaModel.from_pretrained(heads).tree == tree
    assert sorted(each.name for each in heads.iterdir()) == [
        "config.json",
        "medusa_lm_head.pt",
        "medusa_tree.json",
    ]
    assert (heads / "config.json").read_bytes() == before
