"""`medusa bench`."""

import json

import pytest
from typer.testing import CliRunner

from medusa.cli import app

runner = CliRunner()
SHORT = ["--limit", "1", "--max-new-tokens", "8"]


def run(*arguments):
    return runner.invoke(app, ["bench", *map(str, arguments)])


def test_the_embedded_model_is_measured_and_a_run_resumes(tmp_path):
    files = {name: tmp_path / name for name in ("records", "json", "markdown")}
    outputs = [part for name, file in files.items() for part in (f"--{name}", file)]
    result = run("demo", *SHORT, *outputs, "--method", "plain", "--method", "medusa")
    assert result.exit_code == 0, result.output
    assert "medusa is " in result.stdout
    report = json.loads(files["json"].read_text())
    own = report["figures"]["all"]["medusa"]
    assert own["turns"] == own["identical"] == 6
    assert own["tokens_per_step"] > 1.5
    assert report["settings"]["suite"] == "tasks"
    assert report["provenance"]["torch"]
    text = files["markdown"].read_text()
    assert "| medusa | " in text
    assert text.startswith("# demo, tasks")

    before = files["records"].read_bytes()
    again = run("demo", *SHORT, *outputs, "--method", "plain", "--method", "medusa")
    assert again.exit_code == 0, again.output
    assert files["records"].read_bytes() == before, "nothing was answered again"
    assert json.loads(files["json"].read_text())["figures"] == report["figures"]
    other = run("demo", *SHORT, *outputs, "--method", "plain")
    assert other.exit_code == 1
    assert "other settings (methods)" in other.stderr

    changed = run("compare", files["json"], files["json"])
    assert changed.exit_code == 0, changed.output
    assert "no certain change" in changed.stdout
    assert "higher" not in changed.stdout


def test_the_command_run_need_not_be_named(tmp_path):
    named = run("run", "demo", *SHORT, "--method", "plain")
    assert named.exit_code == 0, named.output
    assert "compare" in run("--help").stdout
    assert "--suite" in run("run", "--help").stdout
    missing = run("compare", tmp_path / "a.json", tmp_path / "b.json")
    assert missing.exit_code == 1
    assert "a.json" in missing.stderr


def test_a_public_suite_has_turns_and_temperatures(tmp_path):
    record = {"question_id": 1, "category": "writing", "turns": ["Sort 3, 1, 2.", "Again."]}
    (tmp_path / "q.jsonl").write_text(json.dumps(record) + "\n")
    arguments = ["--suite", "mt-bench", "--data", tmp_path / "q.jsonl", "--max-new-tokens", "6"]
    result = run("demo", *arguments, "--method", "plain", "--json", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "a.json").read_text())["figures"]
    assert figures["writing"]["plain"]["turns"] == 2
    assert figures["writing"]["plain"]["greedy_turns"] == 0, "writing is sampled at 0.7"


def test_questions_of_chosen_categories_are_asked(tmp_path):
    chosen = ["--category", "math", "--category", "code", "--method", "plain"]
    result = run("demo", *SHORT, *chosen, "--json", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "a.json").read_text())
    asked = [turn["question"].split("-")[0] for turn in report["turns"]]
    assert sorted(asked) == ["code", "math"] == sorted(report["settings"]["categories"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--suite", "mt-bench"], "needs --data"),
        (["--data", "x.jsonl"], "leave it out"),
        (["--suite", "gsm8k", "--data", "x.jsonl"], "no file or folder x.jsonl"),
        (["--category", "cooking"], "the suite has extraction, tables"),
        (["--method", "fast"], "there are plain, medusa"),
    ],
)
def test_bad_options_say_what_to_do(arguments, said):
    result = run("demo", *arguments)
    assert result.exit_code != 0
    assert said in " ".join(result.stderr.replace("│", "").split())
