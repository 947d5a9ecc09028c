"""`medusa bench judge`, against a local server."""

import json

import pytest
from judge_prompts import write_prompts
from servers import body, reply, serving
from typer.testing import CliRunner

from medusa.cli import app

runner = CliRunner()


@pytest.fixture
def run(tmp_path):
    """Return a function that grades the records of a small run on the embedded model."""
    question = {"question_id": 1, "category": "stem", "turns": ["Sort 3, 1, 2.", "Again."]}
    (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
    data = ["--data", str(tmp_path / "q.jsonl")]
    arguments = ["--suite", "mt-bench", *data, "--max-new-tokens", "6", "--method", "plain"]
    records = str(tmp_path / "records.jsonl")
    made = runner.invoke(app, ["bench", "demo", *arguments, "--records", records])
    assert made.exit_code == 0, made.output
    prompts = ["--prompts", write_prompts(tmp_path)]

    def grade(*more):
        output = ["--output", str(tmp_path / "grades.jsonl")]
        return runner.invoke(app, ["bench", "judge", records, *data, *prompts, *output, *more])

    return grade


def test_answers_are_graded_over_http_and_a_run_resumes(run, tmp_path):
    def answer(request, number):
        assert request["temperature"] == 0
        assert request["messages"][0]["role"] == "system"
        return body(reply(f"Fine. Rating: [[{4 + number}]]"))

    with serving(answer) as (address, asked):
        options = ["--server", address, "--judge", "a-judge", "--in-flight", "1"]
        result = run(*options, "--json", str(tmp_path / "a.json"))
        assert result.exit_code == 0, result.output
        assert {request["model"] for request, _ in asked} == {"a-judge"}
        assert len(asked) == 2
        again = run(*options)
        assert again.exit_code == 0, again.output
        assert len(asked) == 2, "nothing is graded twice"
    found = json.loads((tmp_path / "a.json").read_text())["scores"]["plain"]
    assert found["by_turn"] == {"1": 5, "2": 6}
    assert found["rating"] == 5.5
    assert "5.50" in result.stdout


def test_a_judge_without_a_server_is_refused(run):
    result = run()
    assert result.exit_code == 1
    assert "pass --server URL" in result.stderr
