import json

import pytest
from typer.testing import CliRunner

from medusa import CandidateTree, MedusaModel
from medusa.calibration.prompts import encode, read_prompts
from medusa.cli import app

runner = CliRunner()
QUICK = ["--prompts", "6", "--rounds", "3", "--context", "20", "--max-new-tokens", "12", "--max-nodes", "8"]


@pytest.fixture
def heads(folders, tmp_path):
    """A copy of the heads that may be changed."""
    model = MedusaModel.from_pretrained(folders / "heads")
    model.save_pretrained(tmp_path / "heads", base=str(folders / "base"))
    return tmp_path / "heads"


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one two\nthree four five\nthe tree\nof candidates\nis verified\nin one step\n")
    return file


def test_the_tree_is_stored_and_used(heads, prompts, tmp_path):
    report = tmp_path / "report.json"
    told = runner.invoke(app, ["calibrate", str(heads), "--data", str(prompts), "--json", str(report), *QUICK])
    assert told.exit_code == 0, told.output
    result = json.loads(report.read_text())
    assert set(result["predicted"]) >= {"acceleration_rate", "overhead", "speedup"}
    assert set(result["measured"]) >= {"acceleration_rate", "overhead", "speedup"}
    assert len(result["accuracy"]) == 2
    assert set(result["latency"]) >= {"1", "2", "4"}
    tree = CandidateTree(result["tree"])
    stored = json.loads((heads / "medusa_tree.json").read_text())
    assert CandidateTree(stored["paths"]) == tree
    assert stored["made"]["prompts"]["count"] == 4
    assert stored["made"]["dtype"] == "float64"
    latency = MedusaModel.from_pretrained(heads, all_heads=True).calibration.latency
    assert {str(nodes): ms for nodes, ms in latency.items()} == stored["latency"]
    assert "What each further head adds" in told.output


def test_heads_are_kept_and_the_weights_untouched(heads, prompts):
    before = (heads / "medusa_lm_head.safetensors").read_bytes()
    told = runner.invoke(app, ["calibrate", str(heads), "--data", str(prompts), "--heads", "1", *QUICK])
    assert told.exit_code == 0, told.output
    assert (heads / "medusa_lm_head.safetensors").read_bytes() == before
    assert max(map(len, json.loads((heads / "medusa_tree.json").read_text())["paths"]), default=0) <= 1


def test_another_folder_gets_heads_and_tree(heads, prompts, tmp_path):
    before = (heads / "medusa_tree.json").read_bytes()
    output = tmp_path / "elsewhere"
    told = runner.invoke(
        app, ["calibrate", str(heads), "--data", str(prompts), "--output", str(output), "--temperature", "1", *QUICK]
    )
    assert told.exit_code == 0, told.output
    assert (heads / "medusa_tree.json").read_bytes() == before
    assert MedusaModel.from_pretrained(output, all_heads=True).heads.config.num_heads == 2


def test_figures_are_drawn(heads, prompts, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "figures"
    told = runner.invoke(app, ["calibrate", str(heads), "--data", str(prompts), "--figures", str(folder), *QUICK])
    assert told.exit_code == 0, told.output
    assert {file.name for file in folder.iterdir()} == {"accuracy.png", "tree.png", "trees.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.iterdir())


def test_an_interrupted_recording_is_resumed(heads, prompts, tmp_path):
    command = ["calibrate", str(heads), "--data", str(prompts), "--resume", str(tmp_path / "work"), *QUICK]
    assert runner.invoke(app, command).exit_code == 0
    files = sorted((tmp_path / "work").rglob("*.safetensors"))
    assert files
    times = [file.stat().st_mtime_ns for file in files]
    assert runner.invoke(app, command).exit_code == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    assert runner.invoke(app, [*command, "--max-new-tokens", "9"]).exit_code == 0
    assert len(sorted((tmp_path / "work").rglob("*.safetensors"))) > len(files), "other settings are recorded anew"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["{folders}/heads"], "--data"),
        (["{folders}/base", "--data", "{prompts}"], "no Medusa heads"),
        (["{folders}/heads", "--data", "nothing.txt"], "no file or folder nothing.txt"),
    ],
)
def test_what_is_missing_is_named(folders, prompts, arguments, remedy):
    told = runner.invoke(app, ["calibrate", *(each.format(folders=folders, prompts=prompts) for each in arguments)])
    assert told.exit_code == 1
    assert remedy in told.output
    assert len(told.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "one\n\ntwo\n", [["one"], ["two"]]),
        ("a.jsonl", '{"question": "why?", "answer": "so"}\n{"turns": ["a", "b"]}\n', [["why?"], ["a"]]),
        (
            "a.json",
            '[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "plain text"]',
            [["a"], ["plain text"]],
        ),
        (
            "b.jsonl",
            '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, '
            '{"role": "assistant", "content": "a"}]}',
            [["s", "q"]],
        ),
        ("c.jsonl", '{"instruction": "q", "input": "i", "system": "s", "output": "a"}', [["s", "q\n\ni"]]),
    ],
)
def test_prompts_are_read_from_the_usual_files(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    chats = read_prompts(str(tmp_path / name))
    assert [[message["content"] for message in chat] for chat in chats] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"foo": 1}', "it has foo"),
        ("{", "line 1: not JSON"),
        ("", "no prompts"),
        ("3", "int"),
        ('{"prompt": "q", "text": "a document"}', "text holds a part of the conversation"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(str(tmp_path / "a.jsonl"))


def test_prompts_are_encoded_with_the_chat_template(tokenizer):
    ids = encode(tokenizer, [{"role": "user", "content": "one two"}])
    assert tokenizer.decode(ids).endswith("<|assistant|>\n")
