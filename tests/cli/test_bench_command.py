"""`medusa bench`."""

import json

import pytest
import torch
from servers import said, serving, stream, used
from typer.testing import CliRunner

from medusa import demo
from medusa.cli import app
from medusa.data.prompts import encode

runner = CliRunner()
SHORT = ["--limit", "1", "--max-new-tokens", "8"]


def run(*arguments):
    return runner.invoke(app, ["bench", *map(str, arguments)])


def test_the_embedded_model_is_measured_and_a_run_resumes(tmp_path):
    files = {name: tmp_path / name for name in ("records", "json", "markdown")}
    outputs = [part for name, file in files.items() for part in (f"--{name}", file)]
    methods = ["--method", "plain", "--method", "medusa", "--perplexity"]
    result = run("demo", *SHORT, *outputs, *methods)
    assert result.exit_code == 0, result.output
    assert "medusa is " in result.stdout
    assert " GB of main memory, all methods' models included." in " ".join(result.stdout.split())
    report = json.loads(files["json"].read_text())
    own = report["figures"]["all"]["medusa"]
    assert own["turns"] == own["identical"] == 6
    assert own["tokens_per_step"] > 1.5
    assert report["settings"]["suite"] == "tasks"
    assert report["provenance"]["torch"]
    assert report["process_peak_bytes"] > 1e8
    assert 1 < own["perplexity"] < 2
    assert own["device_peak_bytes"] is None
    assert any(int(count) > 1 for count in own["accepted"]), "drafted tokens were accepted"
    text = files["markdown"].read_text()
    assert "| medusa | " in text
    assert "| perplexity |" in text
    assert "GPU GB" not in text, "columns without figures are left out"
    assert text.startswith("# demo, tasks")

    before = files["records"].read_bytes()
    again = run("demo", *SHORT, *outputs, *methods)
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


def test_a_server_stands_in_the_same_report(tmp_path):
    model, tokenizer = demo.load()
    lost = []

    def answer(request, _number):
        """Answer as plain decoding does, except one question."""
        ids = torch.tensor([encode(tokenizer, request["messages"])])
        new = model.base.generate(ids, max_new_tokens=request["max_tokens"], do_sample=False)
        new = new[0, ids.shape[1] :].tolist()
        text = tokenizer.decode(new, skip_special_tokens=True)
        if "SQL" in request["messages"][-1]["content"]:
            lost.append(text)
            text = "other"
        return stream(said(f"\n{text[:9]}"), said(text[9:]), used(len(new)), "[DONE]")

    files = [f"--{name}={tmp_path / name}" for name in ("records", "json", "markdown")]
    with serving(answer) as (address, asked):
        served = f"server={address},model=demo"
        methods = ["--method", "plain", "--method", "medusa", "--method", served]
        result = run("demo", *SHORT, *methods, *files, "--figures", tmp_path / "figures")
        assert result.exit_code == 0, result.output
        assert lost
        assert len(asked) == 7, "six questions and a warm-up"
        again = run("demo", *SHORT, *methods, *files)
        assert (again.exit_code, len(asked)) == (0, 7), "the records hold the server's answers"
    figures = json.loads((tmp_path / "json").read_text())["figures"]["all"]
    own, plain = figures[served], figures["plain"]
    assert own["tokens"] == plain["tokens"]
    assert (own["identical"], own["greedy_turns"]) == (5, 6)
    assert own["tokens_per_step"] is own["ms_per_token"] is own["perplexity"] is None
    assert 0 < own["first_token_ms"] <= 1000 * own["total_seconds"]
    assert own["speedup_over"]["plain"]["median"] > 0
    assert f"| {served} |  | " in (tmp_path / "markdown").read_text()
    compared = run("compare", tmp_path / "json", tmp_path / "json")
    assert compared.exit_code == 0, compared.output


def test_a_server_that_is_not_there_ends_the_run_before_it():
    result = run("demo", *SHORT, "--method", "plain", "--method", "server=http://127.0.0.1:9/v1")
    assert result.exit_code == 1
    assert "http://127.0.0.1:9/v1: no connection" in result.stderr


def test_heads_that_are_never_right_are_said(tmp_path):
    model, _ = demo.load()
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "heads", base=demo.FOLDER / "base")
    methods = ["--method", "plain", "--method", "medusa,nodes=4"]
    result = run(tmp_path / "heads", *SHORT, *methods, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    assert "medusa,nodes=4: no token of the heads was accepted" in " ".join(result.stdout.split())


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
        (["--method", "server"], "server needs an address, server=URL"),
        (["--method", "server=localhost"], "begins with http:// or https://"),
        (["--method", "server=http://x/v1,name=y"], "server has model, not name=y"),
    ],
)
def test_bad_options_say_what_to_do(arguments, said):
    result = run("demo", *arguments)
    assert result.exit_code != 0
    assert said in " ".join(result.stderr.replace("│", "").split())
