"""The code, commands and links in the README and the documentation work as they are written."""

import json
import re
import shlex
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
import yaml
from peft_versions import own_methods
from running import demo_app, running
from test_layout import LAYERS, PACKAGE
from transformers import dynamic_module_utils

from medusa import demo
from medusa.cli import app
from medusa.cli.streams import RunByDefault
from medusa.demo import smollm2
from medusa.demo.tasks import CATEGORIES, make_task
from medusa.formats import native

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MODEL_NAMES = ("your-model", "your-org/your-7b", "Qwen/Qwen2.5-1.5B-Instruct", smollm2.HUB_ID)
"""Names that the documentation uses for any base model."""
SLOW = {"calibration.md", "training.md"}
"""Pages whose Python code takes more than a few seconds."""


def blocks(page: Path, language: str) -> list[str]:
    """The page's code blocks in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


PYTHON = [
    pytest.param(
        code,
        id=f"{page.name}-{number}",
        marks=[
            *([pytest.mark.slow] if page.name in SLOW else []),
            *([own_methods] if ".add_adapter(" in code else []),
        ],
    )
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
]


def commands(page: Path) -> list[list[str]]:
    """The words of each command of the page's console blocks."""
    text = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    lines = re.findall(r"^\$ (.+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = [
    pytest.param(words, id=f"{page.name}-{' '.join(words)[:40]}")
    for page in PAGES
    for words in commands(page)
]


@pytest.fixture
def a_users_folder(tmp_path, monkeypatch):
    """A working folder with the models and data that the documentation names.

    All base models are copies of the embedded one, and all heads are its heads.
    """
    shutil.copytree(demo.FOLDER / "base", tmp_path / "base")  # the heads name ../base
    shutil.copytree(demo.FOLDER / "heads", tmp_path / "my-heads")
    native.write_code(tmp_path / "my-heads")
    for name in MODEL_NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / "base")
    monkeypatch.setattr(smollm2, "HEADS", tmp_path / "my-heads")
    (tmp_path / "src").symlink_to(ROOT / "src")
    # transformers copies the code that it runs
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    tasks = [make_task(category, seed) for seed in range(2) for category in CATEGORIES]
    chats = [
        [{"role": "user", "content": task.prompt}, {"role": "assistant", "content": task.answer}]
        for task in tasks
    ]
    (tmp_path / "answers.jsonl").write_text(
        "".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def variables(a_users_folder):
    """The variables that the documentation's code uses without assigning them."""
    model, tokenizer = demo.load()
    prompts = [
        tokenizer(f"<|user|>\n{make_task(category, seed).prompt}<|end|>\n<|assistant|>\n").input_ids
        for seed in range(2)
        for category in CATEGORIES
    ]
    chat = [{"role": "user", "content": make_task(CATEGORIES[0], 0).prompt}]
    return {
        "model": model,
        "tokenizer": tokenizer,
        "inputs": tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ),
        "texts": [(tokenizer(f"{n} + 1 =").input_ids, [1, 2, 3]) for n in range(104)],
        "prompts": prompts[:6],
        "other_prompts": prompts[6:8],
        "folder": a_users_folder / "output",
    }


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_code_runs(code, variables, capsys):
    if "medusa-2" in code or "from peft" in code:
        pytest.importorskip("peft")
    if "Grammar" in code:
        pytest.importorskip("llguidance", reason="the extra 'structured' is not installed")
    with served(code) as code:
        exec(code, variables)
    assert "print(" not in code or capsys.readouterr().out.strip()


@contextmanager
def served(code):
    """Run the server that the code calls; give the code with its address."""
    if "localhost:8000" not in code:
        yield code
        return
    pytest.importorskip("openai")
    with running(demo_app(*demo.load(), name="my-heads")) as address:
        yield code.replace("http://localhost:8000", address)


def test_the_readme_shows_a_chat_model():
    (code,) = blocks(ROOT / "README.md", "python")
    assert code.startswith("from medusa import MedusaModel")
    assert "apply_chat_template" in code


def test_the_readme_fits_one_page():
    assert len(README.splitlines()) <= 100


def test_the_first_screen_names_the_two_commands():
    first = README[: README.index("## ")]
    assert "make demo" in first
    assert "make test" in first


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert set(re.findall(r"^- \[(\S+)\]\(\1\): ", index, re.MULTILINE)) == pages


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_and_their_options_exist(words):
    program, *arguments = words
    if program == "medusa":
        check_medusa(arguments)
    elif "medusa.cli" in arguments:  # through torchrun or accelerate
        check_medusa(arguments[arguments.index("medusa.cli") + 1 :])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "python" and arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file()
    elif program == "pip":
        check_extras(" ".join(arguments))


def check_medusa(arguments: list[str]) -> None:
    """Check that a subcommand and its options exist."""
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        runs_by_default = isinstance(command, RunByDefault)
        named = not runs_by_default or arguments[0] in command.commands
        command = command.commands[arguments.pop(0) if named else "run"]
    options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    given = {argument.split("=")[0] for argument in arguments if argument.startswith("-")}
    assert given <= options, given - options


def check_extras(arguments: str) -> None:
    """Check that the extras of this distribution exist."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in re.findall(r"(?:medusa-decoding|\.)\[(\w+)\]", arguments):
        assert re.search(rf"^{name} = \[", project, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_that_are_run_exist(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:benchmarks|tools)\.[a-z0-9_.]+[a-z0-9_])", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_the_options_of_a_configuration_file_exist():
    train = typer.main.get_command(app).commands["train"]
    options = {o for p in train.params for o in (*p.opts, *p.secondary_opts)}
    (text,) = blocks(ROOT / "docs" / "training.md", "yaml")
    assert {f"--{key}" for key in yaml.safe_load(text) if key != "model"} <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_json_is_json(page):
    for block in blocks(page, "json"):
        assert all(json.loads(line) for line in block.splitlines())


def test_contributing_lists_the_layers_in_their_order():
    (tree,) = [
        block
        for block in blocks(ROOT / "CONTRIBUTING.md", "text")
        if block.startswith("src/medusa/\n")
    ]
    listed = [name.removesuffix(".py") for name in re.findall(r"^  ([a-z.]+)/? ", tree, re.M)]
    present = [
        layer
        for layer in LAYERS
        if any((PACKAGE / f"{layer}{end}").exists() for end in ("", ".py"))
    ]
    assert listed == present
