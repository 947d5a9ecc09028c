"""Tests of the package's layout: layers, sizes, imports and public names."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "medusa"

# Each layer, a folder or a module of the package, imports only from layers before it.
LAYERS = (
    "files",
    "hardware",
    "runtime",
    "core",
    "text",
    "data",
    "formats",
    "generation",
    "loading",
    "training",
    "calibration",
    "demo",
    "evaluation",
    "serve",
    "cli",
)

SOURCES = sorted(PACKAGE.rglob("*.py"))


def module_parts(path: Path) -> list[str]:
    """Return the parts of a file's module name within the package: ["core", "cache"]."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported_layers(source: str, parts: list[str], is_package: bool) -> set[str]:
    """Return the layers that a file imports anywhere; "" stands for the package itself."""
    here = ["medusa", *parts]
    package = here if is_package else here[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        targets: list[list[str]] = []
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            targets = [[*base, alias.name] for alias in node.names]
        for target in targets:
            if target[0] != "medusa":
                continue
            name = target[1] if len(target) > 1 else ""
            is_module = (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()
            found.add(name if name in LAYERS or is_module else "")
    return found


def test_every_module_belongs_to_a_layer():
    present = {module_parts(path)[0] for path in SOURCES if module_parts(path)} - {"__main__"}
    unplaced = sorted(present - set(LAYERS))
    assert not unplaced, f"place these in LAYERS in {Path(__file__).name}: {unplaced}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_come_from_earlier_layers(path):
    parts = module_parts(path)
    if not parts or parts[0] == "__main__":  # medusa/__init__ and __main__ may import every layer
        return
    layer = parts[0]
    earlier = LAYERS[: LAYERS.index(layer)] if layer in LAYERS else ()
    imports = imported_layers(path.read_text(encoding="utf-8"), parts, path.name == "__init__.py")
    wrong = sorted(
        name or "medusa (import the module itself)" for name in imports - {layer, *earlier}
    )
    assert not wrong, f"{layer} comes before what it imports: {wrong}"


@pytest.mark.parametrize(
    ("source", "parts", "is_package", "layers"),
    [
        ("import medusa.core.tree", ["loading"], False, {"core"}),
        ("from medusa import core, data", ["loading"], False, {"core", "data"}),
        ("from medusa.core.cache import X", ["loading"], False, {"core"}),
        ("from .core.cache import X", ["loading"], False, {"core"}),
        ("from . import files", ["loading"], False, {"files"}),
        ("from .. import files", ["training", "loop"], False, {"files"}),
        (
            "from ..files import X",
            ["training"],
            False,
            set(),
        ),  # Python raises an error: this leaves the package
        ("from .loop import X", ["training"], True, {"training"}),
        ("from ..cli import X", ["training"], True, {"cli"}),
        ("def f():\n    from .cli import app", ["loading"], False, {"cli"}),
        ("from medusa import MedusaModel", ["demo"], False, {""}),
        ("import medusa", ["demo"], False, {""}),
        ("import torch\nfrom torch import nn", ["demo"], False, set()),
    ],
)
def test_imported_layers(source, parts, is_package, layers):
    assert imported_layers(source, parts, is_package) == layers


ROOT = PACKAGE.parents[1]
CODE = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for folder in ("src", "benchmarks", "tools", "deploy")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 40
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that may be longer, with the reasons; at most five."""


def test_files_are_short():
    long = {name for name, source in CODE.items() if len(source.splitlines()) > LONGEST_FILE}
    assert long == LONG_FILES


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of lines of a function without its docstring."""
    lines, first = function.end_lineno - function.lineno + 1, function.body[0]
    return lines - (first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0)


def test_functions_are_short():
    long = {
        f"{name}:{node.name}"
        for name, source in CODE.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and code_lines(node) > LONGEST_FUNCTION
    }
    assert long == set(LONG_FUNCTIONS)


def loaded_by(statements: str) -> set[str]:
    """Return the top-level modules that a new Python has loaded after these statements."""
    report = (
        "import sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"{statements}\n{report}"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_medusa_loads_no_slow_packages():
    heavy = {"typer", "rich", "fastapi", "matplotlib", "datasets", "peft", "accelerate"}
    # Modules that torch and the Hugging Face libraries load are not counted.
    upstream = loaded_by(
        "import torch, safetensors.torch\n"
        "from huggingface_hub import HfApi, snapshot_download\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, "
        "PreTrainedModel\n"
        "from transformers.cache_utils import Cache\n"
        "import transformers.generation.logits_process, transformers.generation.streamers"
    )
    extra = sorted(heavy & (loaded_by("import medusa") - upstream))
    assert not extra, f"import medusa loads {extra}; import them where they are used"


def test_public_names_exist_and_have_docstrings():
    medusa = importlib.import_module("medusa")
    names = getattr(medusa, "__all__", [])
    assert len(names) == len(set(names))
    for name in names:
        value = getattr(medusa, name, None)
        assert value is not None, f"medusa.__all__ names {name}, which is not there"
        if inspect.ismodule(value) or inspect.isclass(value) or callable(value):
            doc = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
            assert doc, f"medusa.{name} has no docstring"


def test_sources_contain_no_absolute_paths():
    place = re.compile(r"(?<![\w.])/(?:home|Users|root|tmp|private|mnt)/\w")
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()[:80]}"
        for path in sorted(PACKAGE.rglob("*"))
        if path.suffix in {".py", ".json", ".jinja", ".md", ".toml"}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if place.search(line)
    ]
    assert not found, found


def test_messages_name_this_distribution_and_its_extras():
    """With another name in a message, users would install another package."""
    project = (PACKAGE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    name = re.search(r'^name = "([\w-]+)"', project, re.MULTILINE)[1]
    extras = set(
        re.findall(
            r"^(\w+) = \[",
            project[project.index("[project.optional-dependencies]") :],
            re.MULTILINE,
        )
    )
    named = [
        (path.name, found)
        for path in SOURCES
        for found in re.findall(
            r"(medusa-[a-z]+)(?:\[(\w+)\])?['\"]", path.read_text(encoding="utf-8")
        )
        if found[0] not in ("medusa-1", "medusa-2")
    ]
    assert named
    assert [each for each in named if each[1][0] != name or each[1][1] not in extras | {""}] == []
