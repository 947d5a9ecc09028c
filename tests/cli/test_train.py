import json

import pytest
from typer.testing import CliRunner

from medusa import MedusaModel
from medusa.cli import app

runner = CliRunner()
FAST = [
    "--num-heads",
    "2",
    "--epochs",
    "1",
    "--batch-size",
    "4",
    "--micro-batch-size",
    "4",
    "--save-every",
    "0",
]


@pytest.fixture
def chats(tmp_path):
    turns = [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three four"}]
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"messages": turns}) for _ in range(12)))
    return file


def test_a_base_model_gets_heads(folders, chats, tmp_path):
    out = tmp_path / "out"
    result = runner.invoke(
        app, ["train", str(folders / "base"), "--data", str(chats), "-o", str(out), *FAST]
    )
    assert result.exit_code == 0, result.output
    assert "12 examples" in result.stderr
    assert f"written to {out}" in result.stderr.replace("\n", "")
    assert MedusaModel.from_pretrained(out, all_heads=True).heads.config.num_heads == 2


def test_flags_go_before_the_recipes_file(folders, chats, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("num-heads: 3\nlr: 1e-3\nepochs: 9\n")
    options = [
        "--config",
        str(recipe),
        "--data",
        str(chats),
        "-o",
        str(tmp_path / "out"),
        *FAST[2:],
    ]
    result = runner.invoke(app, ["train", str(folders / "base"), *options])
    assert result.exit_code == 0, result.output
    recipe = json.loads((tmp_path / "out" / "training.json").read_text())["recipe"]
    assert (recipe["num_heads"], recipe["lr"], recipe["epochs"]) == (3, 1e-3, 1)


def test_a_file_can_say_everything_and_flags_go_before_it(folders, chats, tmp_path):
    file = tmp_path / "mine.yaml"
    paths = {
        "model": str(folders / "base"),
        "data": str(chats),
        "output": str(tmp_path / "one"),
        "limit": 8,
    }
    options = {
        "num-heads": 2,
        "epochs": 1,
        "batch_size": 4,
        "micro_batch_size": 4,
        "save_every": 0,
        "bf16": False,
    }
    file.write_text("".join(f"{name}: {value}\n" for name, value in {**paths, **options}.items()))
    result = runner.invoke(app, ["train", "--config", str(file)])
    assert result.exit_code == 0, result.output
    assert "8 examples" in result.stderr
    assert MedusaModel.from_pretrained(tmp_path / "one", all_heads=True).heads.config.num_heads == 2
    result = runner.invoke(
        app, ["train", "-o", str(tmp_path / "two"), "--limit", "4", "--config", str(file)]
    )
    assert result.exit_code == 0, result.output
    assert "4 examples" in result.stderr
    assert (tmp_path / "two" / "training.json").is_file()


def test_the_embedded_models_heads_go_on(chats, tmp_path):
    result = runner.invoke(
        app, ["train", "demo", "--data", str(chats), "-o", str(tmp_path / "run"), *FAST[2:]]
    )
    assert result.exit_code == 0, result.output
    assert MedusaModel.from_pretrained(tmp_path / "run").heads.config.num_layers == 3


def test_preview_shows_an_example_with_its_mask_in_colour(folders, chats):
    from io import StringIO

    from rich.console import Console
    from transformers import AutoTokenizer

    from medusa.cli.preview import show_preview
    from medusa.training import Source

    screen = Console(file=StringIO(), force_terminal=True, color_system="standard", width=100)
    show_preview(screen, AutoTokenizer.from_pretrained(folders / "base"), Source("", str(chats)))
    shown = screen.file.getvalue()
    assert "\x1b[32mthree four<|end|>\x1b[0m" in shown
    assert "\x1b[90m<|user|>" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nowhere.jsonl", "-o", "x"], "no file or folder nowhere.jsonl"),
        (["--data", "CHATS"], "--output"),
        (["--data", "CHATS", "-o", "x", "--lr", "0"], "lr must be positive"),
        (
            ["--data", "CHATS", "-o", "x", "--lora-rank", "32"],
            "lora_rank has no effect with method medusa-1",
        ),
        (["--data", "CHATS", "-o", "x", "--config", "nobody"], "vicuna-7b-medusa-2"),
        (
            ["--data", "CHATS", "-o", "x", "--batch-size", "5", "--micro-batch-size", "2"],
            "no multiple",
        ),
        (
            ["--data", "CHATS", "-o", "x", "--config", "WRONG"],
            "wrong.yaml: unknown option methd; did you mean method?",
        ),
        (
            ["--data", "CHATS", "-o", "x", "--config", "ODD"],
            "odd.yaml: batch_size must be a whole number, got eight",
        ),
        (["--data", "EMPTY", "--preview"], "empty.jsonl is empty"),
        (
            ["--data", "UNASKED", "--preview"],
            "unasked.jsonl, line 1: a chat without an assistant's turn",
        ),
        (["--data", "CHATS", "-o", "x", "--chat-template", "ODD"], "template cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folders, chats, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    files = {
        "WRONG": ("wrong.yaml", "methd: medusa-2"),
        "ODD": ("odd.yaml", "batch_size: eight # {% if"),
        "EMPTY": ("empty.jsonl", ""),
        "UNASKED": ("unasked.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}'),
    }
    for name, text in files.values():
        (tmp_path / name).write_text(text)
    named = {"CHATS": str(chats), **{each: name for each, (name, _) in files.items()}}
    given = [named.get(each, each) for each in options]
    result = runner.invoke(app, ["train", str(folders / "base"), *given])
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.jsonl", b"", "empty.jsonl is empty"),
        ("latin.txt", "caf\xe9".encode("latin-1"), "latin.txt, line 1: not UTF-8"),
        (
            "both.jsonl",
            b'{"messages": [{"role": "user", "content": "q"}], "query": "z"}',
            "query holds a part",
        ),
        ("deep.jsonl", b"[" * 100_000, "deep.jsonl, line 1: JSON that is nested too deeply"),
    ],
)
@pytest.mark.parametrize("command", ["train", "distill", "calibrate"])
def test_every_command_names_what_is_wrong_with_its_data(
    folders, tmp_path, command, name, content, said
):
    (tmp_path / name).write_bytes(content)
    options = [
        "--prompts" if command == "distill" else "--data",
        str(tmp_path / name),
        "--output",
        str(tmp_path / "out"),
    ]
    result = runner.invoke(app, [command, str(folders / "heads"), *options])
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())
