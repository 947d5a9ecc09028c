"""What the README shows works as it is written."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("in_the_repository")
def test_the_python_lines_run(capsys):
    block = re.search(r"```python\n(from medusa import MedusaModel.*?)```", README, re.S)
    assert block
    exec(block[1], {})
    assert capsys.readouterr().out.strip()


def test_the_first_screen_names_the_two_commands():
    first = README[: README.index("## ")]
    assert "make demo" in first
    assert "make test" in first


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", README):
        assert (ROOT / target).exists(), target
