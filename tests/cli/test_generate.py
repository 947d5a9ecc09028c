"""`medusa generate`: the base model's text, from every place a prompt may come from, and errors in
one line.
"""

import importlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import medusa
from medusa import MedusaModel
from medusa.cli import app
from medusa.loading import NamedModel, load
from medusa.text import encode_text

PROMPT = "one two three"
LENGTH = ["--max-new-tokens", "24"]


def invoke(*arguments, **kwargs):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **kwargs)


def message(text):
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("model", ["heads", "base"])
def test_text_is_the_base_models(folders, reference, model):
    result = invoke("generate", folders / model, "--prompt", PROMPT, *LENGTH)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == reference(message(PROMPT), 24) + "\n"
    assert ("decoding plainly" in result.stderr) == (model == "base")


def test_raw_prompt_from_a_file_and_from_stdin(folders, reference, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n", encoding="utf-8")
    expected = reference(PROMPT, 24) + "\n"
    assert invoke("generate", folders / "heads", "-f", file, "--raw", *LENGTH).stdout == expected
    assert (
        invoke("generate", folders / "heads", "--raw", *LENGTH, input=PROMPT + "\n").stdout
        == expected
    )


def test_plain_gives_the_same_text_and_stats_follow_on_stderr(folders, reference):
    result = invoke(
        "generate", folders / "heads", "--prompt", PROMPT, "--plain", "--stats", *LENGTH
    )
    assert result.stdout == reference(message(PROMPT), 24) + "\n"
    assert result.stderr.startswith("24 tokens, 23 steps, 1.00 tokens per step, ")


@pytest.mark.parametrize("options", [[], ["--top-k", "20", "--top-p", "0.9"]])
def test_a_seed_makes_sampling_repeatable(folders, options):
    runs = [
        invoke(
            "generate",
            folders / "heads",
            "-p",
            PROMPT,
            "--temperature",
            "1",
            "--seed",
            seed,
            *LENGTH,
            *options,
        )
        for seed in (1, 1, 2)
    ]
    assert [run.exit_code for run in runs] == [0, 0, 0], runs[0].stderr
    assert runs[0].stdout == runs[1].stdout != runs[2].stdout


def test_typical_acceptance(folders):
    options = ["--acceptance", "typical", "--temperature", "0.7", "--stats", *LENGTH]
    result = invoke("generate", folders / "heads", "-p", PROMPT, *options)
    assert result.exit_code == 0
    assert result.stderr.startswith("24 tokens")


def test_typical_acceptance_at_temperature_0_gives_greedy_text(folders, reference):
    for options in ([], ["--temperature", "0"]):
        result = invoke(
            "generate",
            folders / "heads",
            "-p",
            PROMPT,
            "--acceptance",
            "typical",
            *options,
            *LENGTH,
        )
        assert result.stdout == reference(message(PROMPT), 24) + "\n"


@pytest.fixture
def stopping(folders, tokenizer, reference, tmp_path):
    """Heads whose base model names a stop string, which its answer holds."""
    answer = reference(message(PROMPT), 24)
    string = next(letter for letter in answer[4:20] if letter.isascii() and letter.isprintable())
    shutil.copytree(folders, tmp_path / "copy")
    file = tmp_path / "copy" / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stop_strings": [string]}))
    return tmp_path / "copy" / "heads", string


@pytest.mark.parametrize("plain", [[], ["--plain"]])
def test_the_models_own_stop_strings_end_an_answer(folders, stopping, plain):
    heads, string = stopping
    model, tokenizer = load(NamedModel.find(heads))
    ids = encode_text(tokenizer, PROMPT)
    expected = model.base.generate(ids, max_new_tokens=24, do_sample=False, tokenizer=tokenizer)[
        0, ids.shape[1] :
    ]
    text = tokenizer.decode(expected, skip_special_tokens=True)
    assert string in text
    assert len(expected) < 24
    result = invoke("generate", heads, "-p", PROMPT, *LENGTH, *plain)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == text + "\n"
    chatted = invoke("chat", heads, *LENGTH, *plain, input=PROMPT + "\n")
    assert chatted.stdout == text + "\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("so\nlong"), "error: so long"),
        (ValueError(), "error: ValueError"),
        (
            OSError(28, "No space left on device", "x"),
            "error: [Errno 28] No space left on device: 'x'",
        ),
        (ImportError("pip install x"), "error: pip install x"),
        (
            RuntimeError("CUDA out of memory"),
            "error: CUDA out of memory (--verbose shows the traceback)",
        ),
        (MemoryError(), "error: MemoryError (--verbose shows the traceback)"),
        (
            KeyError("x"),
            "error: unexpected KeyError: 'x'; --verbose shows the traceback, please report it",
        ),
        (
            AssertionError(),
            "error: unexpected AssertionError; --verbose shows the traceback, please report it",
        ),
        (
            IndexError("a"),
            "error: unexpected IndexError: a; --verbose shows the traceback, please report it",
        ),
    ],
)
def test_every_error_is_one_line(folders, monkeypatch, error, line):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(MedusaModel, "steps", failing)
    result = invoke("generate", folders / "heads", "-p", "a")
    assert result.exit_code == 1
    assert result.stderr == line + "\n"
    verbose = invoke("generate", folders / "heads", "-p", "a", "--verbose")
    assert verbose.exit_code == 1
    assert verbose.stderr.startswith("Traceback")
    assert f"\n{type(error).__name__}" in verbose.stderr


@pytest.mark.parametrize(
    ("place", "command"),
    [
        ("medusa.cli.models.load", ["chat", "demo"]),
        ("medusa.cli.tree_view.print_tree", ["tree", "show", "demo"]),
        ("medusa.cli.side_by_side.load", ["demo"]),
        ("medusa.cli.models.load", ["calibrate", "demo", "--output", "OUT"]),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interrupt_of_any_command_exits_with_130(monkeypatch, tmp_path, place, command, wrapped):
    def interrupt(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if wrapped:  # as transformers does while it imports
                raise ModuleNotFoundError("Could not import module") from error
            raise

    module, _, name = place.rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), name, interrupt)
    result = invoke(*(tmp_path if each == "OUT" else each for each in command))
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "\n")


def test_a_prompt_is_checked_before_the_model_is_loaded():
    assert invoke("generate", "no-model", "-p", "").stderr.startswith("error: the prompt is empty")


def test_an_answer_stops_where_the_positions_end(folders):
    result = invoke(
        "generate", folders / "heads", "-p", "x" * 100, "--raw", "--stats", "--max-new-tokens", 500
    )
    assert result.exit_code == 0
    assert result.stderr.startswith("29 tokens")
    result = invoke("generate", folders / "heads", "-p", "x" * 200, "--raw")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "error: the prompt has 200 tokens and the model holds 128: shorten it"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prompt", "a", "-f", "b"],
        ["--prompt", "a", "--acceptance", "rejection"],
        ["--prompt", "a", "--acceptance", "greedy", "--temperature", "1"],
        ["--prompt", "a", "--top-p", "0.5"],
        ["--prompt", "a", "--device", "cpu", "--device-map", "auto"],
        ["--prompt", "a", "--dtype", "int3"],
    ],
)
def test_contradictions_are_usage_errors(folders, arguments):
    assert invoke("generate", folders / "heads", *arguments).exit_code == 2


def test_errors_are_one_line_with_a_remedy(folders, tmp_path):
    def error(*arguments):
        result = invoke("generate", *arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        return line

    assert "no folder ./missing: give a folder" in error("./missing", "-p", "a")
    assert "neither Medusa heads nor a model" in error(tmp_path, "-p", "a")
    assert "the prompt is empty: pass --prompt" in error(folders / "heads", "-p", "")
    assert "leave it out" in error(folders / "base", "-p", "a", "--base", folders / "base")
    shutil.copytree(folders / "heads", tmp_path / "heads")
    (tmp_path / "heads" / "config.json").write_text("{}")
    assert "or --base)" in error(tmp_path / "heads", "-p", "a")
    named = invoke("generate", tmp_path / "heads", "-p", "a", "--base", folders / "base", *LENGTH)
    assert named.exit_code == 0


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = invoke("generate", "no-owner/no-model", "-p", "a")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "error: no folder no-owner/no-model, and the hub cannot be reached"
    )


def test_an_interrupt_exits_with_130(folders, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(MedusaModel, "steps", interrupt)
    assert invoke("generate", folders / "heads", "-p", "a").exit_code == 130


def test_as_a_process(folders, reference):
    def medusa(*arguments, text=None):
        run = subprocess.run(
            [sys.executable, "-c", "from medusa.cli import main; main()", *map(str, arguments)],
            input=text,
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        )
        return run.returncode, run.stdout.decode(), run.stderr.decode()

    piped = medusa("generate", folders / "heads", *LENGTH, text=PROMPT.encode())
    assert piped == (0, reference(message(PROMPT), 24) + os.linesep, "")
    status, _, stderr = medusa("generate", "./missing", "-p", "a", "--verbose")
    assert status == 1
    assert stderr.startswith("Traceback")


def test_version():
    assert invoke("--version").stdout == f"medusa {medusa.__version__}\n"
