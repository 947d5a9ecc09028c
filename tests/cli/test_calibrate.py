import builtins
import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from medusa import CandidateTree, MedusaModel
from medusa.cli import app
from medusa.data.prompts import encode, read_prompts

runner = CliRunner()
QUICK = [
    "--prompts",
    "6",
    "--rounds",
    "3",
    "--context",
    "20",
    "--max-new-tokens",
    "12",
    "--max-nodes",
    "8",
    "--no-compile",
]

# the heads are random, so that the calibration may find that no tree pays
pytestmark = pytest.mark.filterwarnings("ignore:calibration of .* found no tree that pays")


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
    result = runner.invoke(
        app, ["calibrate", str(heads), "--data", str(prompts), "--json", str(report), *QUICK]
    )
    assert result.exit_code == 0, result.output
    written = json.loads(report.read_text())
    assert set(written["predicted"]) >= {"acceleration_rate", "overhead", "speedup"}
    assert set(written["measured"]) >= {"acceleration_rate", "overhead", "speedup"}
    assert len(written["accuracy"]) == 2
    assert set(written["latency"]) >= {"1", "2", "4"}
    tree = CandidateTree(written["tree"])
    stored = json.loads((heads / "medusa_tree.json").read_text())
    assert CandidateTree(stored["paths"]) == tree
    assert stored["made"]["prompts"]["count"] == 4
    assert stored["made"]["dtype"] == "float64"
    latency = MedusaModel.from_pretrained(heads, all_heads=True).calibration.latency
    assert {str(nodes): ms for nodes, ms in latency.items()} == stored["latency"]
    assert "Gain of each further head" in result.output


def test_heads_are_kept_and_the_weights_untouched(heads, prompts):
    before = (heads / "medusa_lm_head.safetensors").read_bytes()
    result = runner.invoke(
        app, ["calibrate", str(heads), "--data", str(prompts), "--heads", "1", *QUICK]
    )
    assert result.exit_code == 0, result.output
    assert (heads / "medusa_lm_head.safetensors").read_bytes() == before
    assert (
        max(map(len, json.loads((heads / "medusa_tree.json").read_text())["paths"]), default=0) <= 1
    )


def test_another_folder_gets_heads_and_tree(heads, prompts, tmp_path):
    before = (heads / "medusa_tree.json").read_bytes()
    output = tmp_path / "elsewhere"
    result = runner.invoke(
        app,
        [
            "calibrate",
            str(heads),
            "--data",
            str(prompts),
            "--output",
            str(output),
            "--temperature",
            "1",
            *QUICK,
        ],
    )
    assert result.exit_code == 0, result.output
    assert (heads / "medusa_tree.json").read_bytes() == before
    assert MedusaModel.from_pretrained(output, all_heads=True).heads.config.num_heads == 2


def test_figures_are_drawn(heads, prompts, tmp_path):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "figures"
    result = runner.invoke(
        app, ["calibrate", str(heads), "--data", str(prompts), "--figures", str(folder), *QUICK]
    )
    assert result.exit_code == 0, result.output
    assert {file.name for file in folder.iterdir()} == {"accuracy.png", "tree.png", "trees.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.iterdir())


def test_an_interrupted_recording_is_resumed(heads, prompts, tmp_path):
    command = [
        "calibrate",
        str(heads),
        "--data",
        str(prompts),
        "--resume",
        str(tmp_path / "work"),
        *QUICK,
    ]
    assert runner.invoke(app, command).exit_code == 0
    files = sorted((tmp_path / "work").rglob("*.safetensors"))
    assert files
    times = [file.stat().st_mtime_ns for file in files]
    assert runner.invoke(app, command).exit_code == 0
    assert [file.stat().st_mtime_ns for file in files] == times
    assert runner.invoke(app, [*command, "--max-new-tokens", "9"]).exit_code == 0
    assert len(sorted((tmp_path / "work").rglob("*.safetensors"))) > len(files), (
        "other settings are recorded anew"
    )


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test."""
    monkeypatch.setattr(
        "medusa.cli.models.load", lambda *_, **__: pytest.fail("the model was loaded")
    )


@pytest.mark.parametrize("option", ["--json", "--output", "--figures", "--resume"])
def test_places_that_cannot_be_written_are_found_before_the_model_is_loaded(
    heads, prompts, tmp_path, no_model, option
):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "place"
    result = runner.invoke(
        app, ["calibrate", str(heads), "--data", str(prompts), option, str(place)]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {place}")
    assert "cannot be written" in result.stderr


def test_a_folder_in_the_place_of_the_report_is_found_before_the_model_is_loaded(
    heads, prompts, tmp_path, no_model
):
    result = runner.invoke(
        app, ["calibrate", str(heads), "--data", str(prompts), "--json", str(tmp_path)]
    )
    assert result.stderr == f"error: {tmp_path} is a folder: name a file\n"


@pytest.mark.parametrize("failure", [ModuleNotFoundError("matplotlib"), RuntimeError("broken")])
def test_figures_that_cannot_be_drawn_are_found_before_the_model_is_loaded(
    heads, prompts, tmp_path, no_model, monkeypatch, failure
):
    def missing(name, *others, original=builtins.__import__):
        if name.startswith("matplotlib"):
            raise failure
        return original(name, *others)

    monkeypatch.setattr(builtins, "__import__", missing)
    result = runner.invoke(
        app, ["calibrate", str(heads), "--data", str(prompts), "--figures", str(tmp_path / "x")]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("error: pictures need matplotlib")


def test_other_heads_do_not_get_the_tree(folders, prompts, tmp_path, no_model):
    other = MedusaModel.from_pretrained(folders / "heads")
    with torch.no_grad():
        next(other.heads.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other", base=str(folders / "base"))
    options = ["--data", str(prompts), "--output", str(tmp_path / "other")]
    result = runner.invoke(app, ["calibrate", str(folders / "heads"), *options])
    assert result.exit_code == 1
    assert "holds other heads than" in result.stderr


@pytest.mark.parametrize(
    "broken",
    ["calibration_files.write_report", "calibration_files.draw", "calibration_tables.show"],
)
def test_what_fails_afterwards_leaves_the_other_results(
    heads, prompts, tmp_path, monkeypatch, broken
):
    pytest.importorskip("matplotlib")

    def failing(*_):
        raise RuntimeError("no more ink")

    monkeypatch.setattr(f"medusa.cli.{broken}", failing)
    report, figures, out = tmp_path / "new" / "report.json", tmp_path / "figures", tmp_path / "out"
    options = ["--json", str(report), "--figures", str(figures), "--output", str(out), *QUICK]
    result = runner.invoke(app, ["calibrate", str(heads), "--data", str(prompts), *options])
    assert result.exit_code == 1
    assert "no more ink" in result.stderr
    assert MedusaModel.from_pretrained(out, all_heads=True).calibration.made
    assert report.is_file() == (not broken.endswith("write_report"))
    assert (figures / "tree.png").is_file() == (not broken.endswith("draw"))
    if not broken.endswith("show"):
        assert f"the tree is stored in {out}, but" in result.stderr
        assert "Gain of each further head" in result.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--heads", "3"], "3 heads are asked for (--heads) and the model has 2"),
        (["--context", "127"], "a context of 127 tokens (--context)"),
        (
            ["--context", "20", "--context", str(2**31 - 1)],
            f"a context of {2**31 - 1} tokens (--context)",
        ),
    ],
)
def test_what_the_model_does_not_have_is_said_before_the_work(heads, prompts, options, said):
    result = runner.invoke(app, ["calibrate", str(heads), "--data", str(prompts), *options])
    assert result.exit_code == 1
    assert said in result.stderr


def test_contexts_near_the_end_of_the_positions_leave_room_for_steps(heads, tmp_path):
    (tmp_path / "long.txt").write_text("x" * 90 + "\n" + "y" * 91 + "\n" + "z" * 92)
    options = [option for option in QUICK if option not in ("--context", "20")]
    result = runner.invoke(
        app, ["calibrate", str(heads), "--data", str(tmp_path / "long.txt"), *options]
    )
    assert result.exit_code == 0, result.output
    contexts = json.loads((heads / "medusa_tree.json").read_text())["made"]["contexts"]
    assert max(contexts) < 110


def test_typical_acceptance_is_calibrated(heads, prompts):
    for temperature in ("0", "0.7"):
        options = ["--acceptance", "typical", "--temperature", temperature, *QUICK]
        result = runner.invoke(app, ["calibrate", str(heads), "--data", str(prompts), *options])
        assert result.exit_code == 0, result.output
        assert (
            json.loads((heads / "medusa_tree.json").read_text())["made"]["acceptance"] == "typical"
        )


def test_stop_strings_of_the_model_are_followed(folders, prompts, tmp_path):
    shutil.copytree(folders, tmp_path / "copy")
    config = tmp_path / "copy" / "base" / "generation_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "stop_strings": ["e"]}))
    result = runner.invoke(
        app, ["calibrate", str(tmp_path / "copy" / "heads"), "--data", str(prompts), *QUICK]
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["{folders}/heads"], "--data"),
        (["{folders}/base", "--data", "{prompts}"], "no Medusa heads"),
        (["{folders}/heads", "--data", "nothing.txt"], "no file or folder nothing.txt"),
    ],
)
def test_what_is_missing_is_named(folders, prompts, arguments, remedy):
    result = runner.invoke(
        app, ["calibrate", *(each.format(folders=folders, prompts=prompts) for each in arguments)]
    )
    assert result.exit_code == 1
    assert remedy in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "one\n\ntwo\n", [["one"], ["two"]]),
        (
            "a.jsonl",
            '{"question": "why?", "answer": "so"}\n{"turns": ["a", "b"]}\n',
            [["why?"], ["a"]],
        ),
        (
            "a.json",
            '[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, '
            '"plain text"]',
            [["a"], ["plain text"]],
        ),
        (
            "b.jsonl",
            '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, '
            '{"role": "assistant", "content": "a"}]}',
            [["s", "q"]],
        ),
        (
            "c.jsonl",
            '{"instruction": "q", "input": "i", "system": "s", "output": "a"}',
            [["s", "q\n\ni"]],
        ),
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
