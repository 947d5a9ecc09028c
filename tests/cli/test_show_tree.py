import json

import pytest
from typer.testing import CliRunner

from medusa import CandidateTree
from medusa.cli import app

runner = CliRunner()


def test_a_tree_is_printed_with_its_frequencies(folders):
    result = runner.invoke(app, ["tree", "show", str(folders / "heads")])
    assert result.exit_code == 0, result.output
    assert "not calibrated" in result.output
    assert result.output.count("rank") == len(CandidateTree.default(2)) - 1
    assert "100.0%" in result.output


def test_a_tree_file_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "tree.json"
    made = {"device": "a machine", "frequencies": [1.0, 0.6, 0.3]}
    file.write_text(
        json.dumps(
            {
                "paths": [[0], [0, 0]],
                "accuracies": [[0.6], [0.5]],
                "latency": {"1": 1.0},
                "made": made,
            }
        )
    )
    result = runner.invoke(app, ["tree", "show", str(file), "--png", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "calibrated on a machine" in result.output
    assert "1.90 tokens a step" in result.output


def test_a_published_tree_is_printed_by_its_name():
    result = runner.invoke(app, ["tree", "show", "mc_sim_7b_63"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith(
        "64 nodes, 4 heads, 2.34 tokens a step expected; not calibrated"
    )
    assert result.output.count("rank") == 63


def test_an_unknown_name_lists_the_published_trees(monkeypatch):
    def unreachable(name):
        raise OSError(f"no folder {name}, and the hub cannot be reached")

    monkeypatch.setattr("medusa.formats.names.find_heads", unreachable)
    result = runner.invoke(app, ["tree", "show", "mc_sim"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no folder mc_sim, ")
    assert "published trees are mc_sim_7b_63, vicuna_7b_stage1, " in result.stderr


@pytest.mark.parametrize(("option", "begins"), [("--png", b"\x89PNG"), ("--svg", b"<?xml")])
@pytest.mark.parametrize("name", ["tree", "tree.pdf"])
def test_the_option_says_which_format_a_drawing_has(folders, tmp_path, option, begins, name):
    pytest.importorskip("matplotlib")
    result = runner.invoke(
        app, ["tree", "show", str(folders / "heads"), option, str(tmp_path / "new" / name)]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / name).read_bytes().startswith(begins)


def test_a_drawing_that_cannot_be_written_is_named(folders, tmp_path):
    result = runner.invoke(app, ["tree", "show", str(folders / "heads"), "--png", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr == f"error: {tmp_path} is a folder: name a file\n"


@pytest.mark.parametrize("columns", ["20", "30", "80"])
def test_a_node_takes_one_line_whatever_the_width(folders, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal, whose width counts
    result = runner.invoke(app, ["tree", "show", str(folders / "heads")])
    assert result.exit_code == 0, result.output
    nodes = [line for line in result.stdout.splitlines() if "rank" in line or "root" in line]
    assert len(nodes) == len(result.stdout.splitlines()) - 1 == len(CandidateTree.default(2))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "paths: field required"),
        ("[]", "the whole file: input should be an object"),
        ("nonsense", "not JSON"),
        ('{"paths": [[0, 0]]}', "paths: path (0, 0) needs its parent"),
    ],
)
def test_another_file_is_refused(tmp_path, content, said):
    (tmp_path / "tree.json").write_text(content)
    result = runner.invoke(app, ["tree", "show", str(tmp_path / "tree.json")])
    assert result.exit_code == 1
    assert f"tree.json: {said}" in result.output
