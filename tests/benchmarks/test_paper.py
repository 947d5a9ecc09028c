"""The page that shows the paper's tables beside this library's."""

import dataclasses
import json

from typer.testing import CliRunner

from benchmarks.harness import RESULTS
from benchmarks.paper import Results, keep_command, page
from benchmarks.reproduce import FOLDER, PAGE, Inputs, studies
from medusa.cli import app

INPUTS = Inputs("question.jsonl", "answers.jsonl", limit=1, max_new_tokens=16)


def test_the_page_is_that_of_the_committed_results():
    assert PAGE.read_text(encoding="utf-8") == page(FOLDER)


def test_studies_without_results_are_named(tmp_path):
    (tmp_path / "training.json").write_bytes((RESULTS / "training-amd-epyc.json").read_bytes())
    empty = page(tmp_path / "paper")
    missing = [study.name for study in studies(INPUTS) if not study.name.startswith("draft-")]
    assert all(f"--only {name}`" in empty for name in missing)


def test_results_of_a_run_stand_beside_its_command(tmp_path):
    file = tmp_path / "ladder-embedded.json"
    short = ["--limit", "1", "--max-new-tokens", "8", "--method", "plain", "--json", str(file)]
    done = CliRunner().invoke(app, ["bench", "demo", *short])
    assert done.exit_code == 0, done.output
    keep_command(tmp_path, "ladder-embedded", "medusa bench demo")
    keep_command(tmp_path, "other", "medusa bench other")
    results = Results(tmp_path)
    assert results.has("ladder-embedded")
    assert not results.has("ladder-smollm2")
    assert "$ medusa bench demo\n" in results.source("ladder-embedded")
    speed = json.loads(file.read_text())["figures"]["all"]["plain"]["tokens_per_second"]
    assert f"| plain | 1.00 | 1.00 | {speed:.1f} |" in results.methods("ladder-embedded")


def test_studies_have_different_names_and_commands_of_their_own():
    every = list(studies(INPUTS))
    assert len({study.name for study in every}) == len(every)
    asked = [study for study in every if "question.jsonl" in study.command]
    assert {study.name.rsplit("-", 1)[-1] for study in asked} == {"smollm2"}
    alone = {study.name for study in studies(dataclasses.replace(INPUTS, mt_bench=None))}
    assert alone == {study.name for study in every if study not in asked}
